"""What a failed run means, in one sentence: Python's exceptions and the sandbox's reasons."""

import re

_EXCEPTIONS = {
    "NameError": (
        "A name is used before it is defined; check its spelling or define it first.",
        "정의되지 않은 이름을 사용했습니다. 철자를 확인하거나 먼저 정의하세요.",
    ),
    "SyntaxError": (
        "The code is not valid Python at the marked place.",
        "표시된 위치의 문법이 올바른 파이썬이 아닙니다.",
    ),
    "IndentationError": (
        "The lines are not indented consistently.",
        "들여쓰기가 맞지 않습니다.",
    ),
    "ZeroDivisionError": ("Something is divided by zero.", "0으로 나누었습니다."),
    "TypeError": (
        "An operation got a value of a type it cannot work with.",
        "연산이나 함수에 맞지 않는 자료형의 값이 들어왔습니다.",
    ),
    "ValueError": (
        "A value has the right type but is not acceptable.",
        "자료형은 맞지만 받아들일 수 없는 값입니다.",
    ),
    "IndexError": ("A position lies outside the sequence.", "범위를 벗어난 위치를 읽었습니다."),
    "KeyError": ("The key is not in the dictionary.", "사전에 없는 키를 읽었습니다."),
    "AttributeError": (
        "The object has no attribute of that name.",
        "객체에 그런 이름의 속성이 없습니다.",
    ),
    "ModuleNotFoundError": (
        "The module is not installed in the sandbox.",
        "샌드박스에 설치되어 있지 않은 모듈입니다.",
    ),
    "ImportError": ("The import failed.", "가져오기에 실패했습니다."),
    "FileNotFoundError": ("The file does not exist in the sandbox.", "샌드박스에 없는 파일입니다."),
    "PermissionError": (
        "The sandbox does not permit this.",
        "샌드박스에서 허용되지 않는 동작입니다.",
    ),
    "RecursionError": ("A function calls itself too deeply.", "재귀 호출이 너무 깊습니다."),
    "MemoryError": ("The code needs more memory than it has.", "메모리가 부족합니다."),
    "AssertionError": ("An assertion does not hold.", "단언문이 거짓입니다."),
    "OverflowError": ("A number is too large.", "수가 너무 큽니다."),
    "UnicodeDecodeError": (
        "The bytes are not text in that encoding.",
        "그 인코딩의 글자가 아닙니다.",
    ),
    "KeyboardInterrupt": ("The code was interrupted.", "실행이 중단되었습니다."),
    "EOFError": (
        "The code waits for input, which it cannot get here.",
        "입력을 받을 수 없는 곳에서 입력을 기다렸습니다.",
    ),
    "TimeoutError": ("Something did not answer in time.", "제때 응답이 없었습니다."),
    "ConnectionError": (
        "The network cannot be reached from the sandbox.",
        "샌드박스에서 네트워크에 연결할 수 없습니다.",
    ),
}
_REASONS = {
    "TIMED_OUT": (
        "It was stopped because it ran too long.",
        "실행 시간이 제한을 넘어 중단되었습니다.",
    ),
    "OOM_KILLED": (
        "It was stopped because it used more memory than allowed.",
        "허용된 메모리를 넘어 중단되었습니다.",
    ),
    "OUTPUT_LIMIT": (
        "It was stopped because it printed more than allowed.",
        "허용된 출력량을 넘어 중단되었습니다.",
    ),
    "KILLED": ("It was stopped before it ended.", "끝나기 전에 중단되었습니다."),
    "CANCELED": ("It was canceled before it ended.", "끝나기 전에 취소되었습니다."),
    "SANDBOX_LOST": (
        "Its sandbox was lost; ask again to run it in a new one.",
        "샌드박스가 사라졌습니다. 다시 요청하면 새 샌드박스에서 실행합니다.",
    ),
}
_LAST = re.compile(r"^(?:[\w.]+\.)?(\w+(?:Error|Exception|Interrupt|Exit|Warning))(?::\s*(.*))?$")


def explain_reason(reason: str, is_korean: bool) -> str | None:
    """Why the sandbox ended the run; None where it ended by itself."""
    pair = _REASONS.get(reason.upper())
    return pair[is_korean] if pair else None


def explain_exception(stderr: str, is_korean: bool) -> str | None:
    """What Python's last error line means; None where it is not one."""
    for line in reversed(stderr.strip().splitlines()[-20:]):
        match = _LAST.match(line.strip())
        if match:
            pair = _EXCEPTIONS.get(match[1])
            return f"`{match[1]}`: {pair[is_korean]}" if pair else None
    return None
