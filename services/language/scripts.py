"""Which script a text is written in, and where its code is."""

import re
import unicodedata

_HANGUL = re.compile(r"[\uac00-\ud7a3\u1100-\u11ff\u3130-\u318f]")
_FENCE = re.compile(
    r"(?P<fence>`{3,}|~{3,})[ \t]*(?P<info>[\w+#.-]*)[^\n]*\n(?P<code>.*?)(?:\n[ \t]*(?P=fence)"
    r"|\Z)",
    re.DOTALL,
)
_INLINE = re.compile(r"(?P<ticks>`{1,2})(?!`)(?P<code>[^`]+)(?P=ticks)(?!`)")


def clean(text: str) -> str:
    """NFC, straight quotes, and no control characters but line ends and tabs."""
    text = unicodedata.normalize("NFC", text).translate(_QUOTES)
    return "".join(c for c in text if c in "\n\t" or unicodedata.category(c) != "Cc")


_QUOTES = str.maketrans({"‘": "'", "’": "'", "“": '"', "”": '"', "\u00a0": " "})


def has_hangul(text: str) -> bool:
    """Whether the text holds Korean letters."""
    return _HANGUL.search(text) is not None


def code_blocks(text: str) -> list[tuple[str, str | None]]:
    """Fenced blocks, else backticked pieces, in order, each with its language if it names one."""
    fenced = [
        (match["code"].strip("\n"), match["info"].lower() or None)
        for match in _FENCE.finditer(text)
        if match["code"].strip()
    ]
    if fenced:
        return fenced
    inline = (match["code"].strip() for match in _INLINE.finditer(text))
    return [(code, None) for code in inline if code]


def without_code(text: str, instead: str = " ") -> str:
    """The text with every fenced block and backticked piece replaced."""
    return _INLINE.sub(instead, _FENCE.sub(instead, text))


def has_fence(text: str) -> bool:
    """Whether the text holds a fenced block of code."""
    return _FENCE.search(text) is not None
