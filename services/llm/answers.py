"""What the embedded assistant says: results of tools and fixed texts, in English and Korean."""

import datetime
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from services.llm.errors_explained import explain_exception, explain_reason
from services.llm.person import said_back

_MAX_OUTPUT_CHARS = 4_000
_WEEKDAYS_KO = "월화수목금토일"

HELP = (
    "I can:\n\n"
    "- **run code** in a sandbox: run `print(2**10)`\n"
    "- **calculate**: calculate 12*7\n"
    "- **remember** facts and preferences: remember that I prefer metric units\n"
    "- **answer from memory**: what units do I prefer?\n"
    "- **plan and run plans**: make a plan to publish a release, then: run the plan\n"
    "- **tell the time**: what time is it in Seoul?",
    "저는 이런 일을 할 수 있습니다.\n\n"
    "- **코드 실행**(샌드박스): `print(2**10)` 실행해 줘\n"
    "- **계산**: 12 곱하기 7은?\n"
    "- **기억**: 나는 미터법을 선호한다고 기억해 줘\n"
    "- **기억에서 답하기**: 내가 선호하는 단위는?\n"
    "- **계획 작성과 실행**: 배포 계획을 세워 줘, 그다음 계획 실행해 줘\n"
    "- **시각 안내**: 지금 서울은 몇 시야?",
)
NATURE = (
    "I am Noosphere's embedded assistant. I am not a generative language model: I follow rules, use"
    " tools and quote what I remember, so I cannot write freely or answer questions of general"
    " knowledge.",
    "저는 Noosphere의 내장 어시스턴트입니다. 생성형 언어 모델이 아니라 규칙에 따라 도구를 쓰고"
    " 기억한 내용을 인용합니다. 그래서 자유로운"
    " 글쓰기나 일반 상식 질문에는 답할 수 없습니다.",
)
CONFIGURE = (
    "For free-form answers, configure any OpenAI-compatible provider with `NOOSPHERE_LLM_BASE_URL`,"
    " `NOOSPHERE_LLM_API_KEY` and `NOOSPHERE_LLM_MODEL`, and restart the server.",
    "자유로운 답변이 필요하면 OpenAI 호환 제공자를 `NOOSPHERE_LLM_BASE_URL`,"
    " `NOOSPHERE_LLM_API_KEY`, `NOOSPHERE_LLM_MODEL`로"
    " 설정하고 서버를 다시 시작하세요.",
)
GREETING = (
    "Hello! I am Noosphere's embedded assistant. I can run code, calculate, remember things, answer"
    " from what I remember, make plans and tell the time. What shall we do?",
    "안녕하세요! Noosphere의 내장 어시스턴트입니다. 코드 실행, 계산, 기억, 기억에서 답하기,"
    " 계획, 시각 안내를 할 수 있습니다. 무엇을 해 드릴까요?",
)
THANKS = ("You're welcome!", "천만에요!")
FAREWELL = (
    "Goodbye! I will keep what you asked me to remember.",
    "안녕히 가세요! 기억해 달라고 하신 것은 간직하겠습니다.",
)
ASK_CODE = (
    "Which code shall I run? Put it in backticks or a fenced block, for example: run"
    " `print(2**10)`.",
    "어떤 코드를 실행할까요? 백틱이나 코드 블록에 넣어 주세요. 예: `print(2**10)` 실행해 줘.",
)
ASK_GOAL = (
    "What shall the plan achieve? For example: make a plan to publish a release.",
    "무엇을 위한 계획인가요? 예: 배포 계획을 세워 줘.",
)
NO_PLAN = (
    "There is no plan in this conversation yet. Ask me for one first: make a plan to …",
    "이 대화에는 아직 계획이 없습니다. 먼저 '… 계획을 세워 줘'라고 말씀해 주세요.",
)
NOT_REMEMBERED = (
    "I have nothing in memory that answers this. Tell me, and I will remember it: remember that …",
    "그에 대해 기억하는 것이 없습니다. '… 기억해 줘'라고 알려 주시면 기억하겠습니다.",
)
NO_TOOL = (
    "I would use the tool `{name}` for this, but it is not available in this conversation.",
    "이 일에는 `{name}` 도구가 필요하지만 이 대화에서는 사용할 수 없습니다.",
)
UNKNOWN_PLACE = (
    "I do not know the time zone of “{place}”. Name a large city or a zone such as Asia/Seoul.",
    "“{place}”의 시간대를 모릅니다. 큰 도시나 Asia/Seoul 같은 시간대 이름을 알려 주세요.",
)


def fenced(text: str, info: str = "") -> str:
    """A code block whose fence is longer than any in the text."""
    longest = max((len(run) for run in re.findall(r"`{3,}", text)), default=2)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{info}\n{text}\n{fence}"


def _shortened(text: str, is_korean: bool) -> str:
    text = text.rstrip("\n")
    if len(text) <= _MAX_OUTPUT_CHARS:
        return text
    half = _MAX_OUTPUT_CHARS // 2
    left_out = len(text) - 2 * half
    note = f"… {left_out}자 생략 …" if is_korean else f"… {left_out} characters left out …"
    return f"{text[:half]}\n{note}\n{text[-half:]}"


def memory_marker(ids: Sequence[str]) -> str:
    """The citation that ends an answer made from memories."""
    return " ".join(f"[memory {id}]" for id in ids)


def _failed(error: Any, is_korean: bool) -> str:
    message = error.get("message") if isinstance(error, Mapping) else error
    code = error.get("code") if isinstance(error, Mapping) else None
    what = f"{message}" if message else f"{code}"
    return f"도구가 실패했습니다: {what}" if is_korean else f"That did not work: {what}"


def _ran(result: Mapping[str, Any], is_korean: bool) -> str:
    stdout = _shortened(str(result.get("stdout") or ""), is_korean)
    stderr = _shortened(str(result.get("stderr") or ""), is_korean)
    code = result.get("exitCode")
    reason = explain_reason(str(result.get("reason") or ""), is_korean)
    parts: list[str] = []
    if code == 0 and reason is None:
        if stdout:
            parts += ["실행 결과입니다." if is_korean else "Here is the output:", fenced(stdout)]
        else:
            parts.append("출력 없이 끝났습니다." if is_korean else "It ran and printed nothing.")
        if stderr:
            parts += ["표준 오류:" if is_korean else "On standard error:", fenced(stderr)]
        return "\n\n".join(parts)
    if reason:
        parts.append(reason)
    else:
        shown = "?" if code is None else code
        parts.append(
            f"코드가 종료 코드 {shown}(으)로 실패했습니다."
            if is_korean
            else f"The code failed with exit code {shown}."
        )
    explained = explain_exception(stderr, is_korean)
    if explained:
        parts.append(explained)
    if stdout:
        before = "중단되기 전의 출력:" if is_korean else "Its output until then:"
        parts += [before, fenced(stdout)]
    if stderr:
        parts += ["오류 내용:" if is_korean else "The error:", fenced(stderr)]
    return "\n\n".join(parts)


def _remembered(result: Mapping[str, Any], is_korean: bool) -> str:
    content = str(result.get("content") or "").rstrip(".")
    said = said_back(content)
    marker = memory_marker([str(result["memoryId"])]) if result.get("memoryId") else ""
    if result.get("supersededId"):
        text = (
            f"기억을 고쳤습니다: {said}. 이전 내용은 지난 기록으로 남겨 둡니다."
            if is_korean
            else f"Updated. I will remember: {said}. What I knew before is kept as history."
        )
    elif result.get("isNew") is False:
        text = f"이미 기억하고 있습니다: {said}." if is_korean else f"I already knew: {said}."
    else:
        text = f"기억했습니다: {said}." if is_korean else f"I will remember: {said}."
    return f"{text} {marker}".strip()


def _planned(result: Mapping[str, Any], is_korean: bool) -> str:
    steps = result.get("steps") or []
    title = str(result.get("title") or "").strip()
    head = (
        f"계획을 만들었습니다: **{title}** (`{result.get('planId')}`)"
        if is_korean
        else f"Here is the plan **{title}** (`{result.get('planId')}`):"
    )
    lines = []
    for number, step in enumerate(steps, start=1):
        line = f"{number}. {step.get('description')}"
        after = [int(index) + 1 for index in step.get("dependsOn") or ()]
        if after:
            shown = ", ".join(map(str, after))
            line += f" ({shown}단계 다음)" if is_korean else f" (after {shown})"
        lines.append(line)
    end = (
        "실행하려면 “계획 실행해 줘”라고 말씀해 주세요."
        if is_korean
        else "Say “run the plan” to execute it."
    )
    return "\n\n".join([head, "\n".join(lines), end] if lines else [head, end])


def _plan_started(result: Mapping[str, Any], is_korean: bool) -> str:
    status = str(result.get("status") or "").lower()
    ids = f"`{result.get('planId')}`", f"`{result.get('executionId')}`"
    if is_korean:
        state = status or "알 수 없음"
        return f"계획 {ids[0]}의 실행 {ids[1]}: {state}. 각 단계를 실시간으로 볼 수 있습니다."
    return (
        f"Plan {ids[0]}, execution {ids[1]}: {status or 'unknown'}. Its steps can be watched live."
    )


def _time(result: Mapping[str, Any], is_korean: bool) -> str:
    zone = str(result.get("timeZone") or "UTC")
    try:
        moment = datetime.datetime.fromisoformat(str(result.get("iso")))
    except ValueError:
        return f"{zone}: {result.get('iso')}"
    if is_korean:
        day = _WEEKDAYS_KO[moment.weekday()]
        date = f"{moment.year}년 {moment.month}월 {moment.day}일 {day}요일"
        return f"{zone} 기준 {date} {moment:%H:%M}입니다."
    return f"It is {moment:%H:%M} on {moment:%A}, {moment.day} {moment:%B %Y} in {zone}."


_SHOWN = {
    "run_code": _ran,
    "remember": _remembered,
    "create_plan": _planned,
    "run_plan": _plan_started,
    "current_time": _time,
}


def parsed(content: str) -> Any:
    """A tool's result; its text itself where it is not JSON."""
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return content


def of_tool(name: str, result: Any, is_korean: bool) -> str:
    """What to say after a tool answered."""
    if isinstance(result, Mapping):
        # Code that ended badly is an error with its output beside it, and `_ran` tells both.
        has_output = name == "run_code" and "reason" in result
        if result.get("error") and not has_output:
            return _failed(result["error"], is_korean)
        if name in _SHOWN:
            return _SHOWN[name](result, is_korean)
    text = result if isinstance(result, str) else json.dumps(result, ensure_ascii=False, indent=2)
    head = "도구의 결과입니다." if is_korean else "The tool answered:"
    return f"{head}\n\n{fenced(_shortened(text, is_korean))}"
