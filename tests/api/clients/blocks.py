"""The code of docs/realtime.md, as its readers copy it."""

import re
from pathlib import Path

from tests.product import ROOT

PAGE = ROOT / "docs" / "realtime.md"
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_NAME = re.compile(r"(?://|#) ([\w-]+\.(?:js|py))\b")


def text() -> str:
    """Give the page."""
    return PAGE.read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    """Give the blocks of a language."""
    return [code for found, code in _BLOCK.findall(text()) if found == language]


def files() -> dict[str, str]:
    """Give the files on the page by the name in their first line; every block of code has one."""
    found: dict[str, str] = {}
    for code in blocks("js") + blocks("python"):
        name = _NAME.match(code)
        assert name, f"a block does not name its file: {code[:80]!r}"
        assert name[1] not in found, f"there are two of {name[1]}"
        found[name[1]] = code
    return found


def write(folder: Path) -> None:
    """Write the files into a folder."""
    for name, code in files().items():
        (folder / name).write_text(code, encoding="utf-8")
