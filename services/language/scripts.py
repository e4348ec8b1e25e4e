"""Which script a text is written in, and where its code is."""

import re
import unicodedata
from dataclasses import dataclass

_QUOTES = str.maketrans({"‘": "'", "’": "'", "“": '"', "”": '"', "\u00a0": " "})
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_HANGUL = re.compile(r"[\uac00-\ud7a3\u1100-\u11ff\u3130-\u318f]")
_OPENING = re.compile(r"(?<![`~])(?P<fence>`{3,}|~{3,})[ \t]*(?P<info>[\w+#.-]{0,30})[^\n`]*\n")
_INLINE = re.compile(r"(?<!`)(?P<ticks>`{1,2})(?!`)(?P<code>[^`]+)(?P=ticks)(?!`)")


def clean(text: str) -> str:
    """NFC, straight quotes, and no control characters but line ends and tabs."""
    return _CONTROL.sub("", unicodedata.normalize("NFC", text).translate(_QUOTES))


def has_hangul(text: str) -> bool:
    """Whether the text holds Korean letters."""
    return _HANGUL.search(text) is not None


@dataclass(frozen=True, slots=True)
class _Fence:
    """A fenced block: where it stands in the text, its language and its code."""

    start: int
    end: int
    info: str
    code: str


def _fences(text: str) -> list[_Fence]:
    """Fenced blocks in order, in one pass; one that is never closed reaches to the end."""
    found: list[_Fence] = []
    opening = _OPENING.search(text)
    while opening:
        body = opening.end()
        start = body - 1
        while True:
            # The closing fence stands at the start of a line, after spaces at most.
            start = text.find("\n", start)
            if start < 0:
                code_end = end = len(text)
                break
            line = start + 1
            while line < len(text) and text[line] in " \t":
                line += 1
            if text.startswith(opening["fence"], line):
                code_end, end = max(start, body), line + len(opening["fence"])
                break
            start = max(line, start + 1)
        code = text[body:code_end].strip("\n")
        found.append(_Fence(opening.start(), end, opening["info"].lower(), code))
        opening = _OPENING.search(text, end)
    return found


def code_blocks(text: str) -> list[tuple[str, str | None]]:
    """Fenced blocks, else backticked pieces, in order, each with its language if it names one."""
    fenced = [(fence.code, fence.info or None) for fence in _fences(text) if fence.code.strip()]
    if fenced:
        return fenced
    inline = (match["code"].strip() for match in _INLINE.finditer(text))
    return [(code, None) for code in inline if code]


def without_code(text: str, instead: str = " ") -> str:
    """The text with every fenced block and backticked piece replaced."""
    parts: list[str] = []
    position = 0
    for fence in _fences(text):
        parts += [text[position : fence.start], instead]
        position = fence.end
    return _INLINE.sub(instead, "".join([*parts, text[position:]]))


def has_fence(text: str) -> bool:
    """Whether the text holds a fenced block of code."""
    return bool(_fences(text))
