"""The agent's text must fit the oldest Python of an image and one argument of a command."""

import ast
import sys
from pathlib import Path

from sandbox import agent


def source() -> str:
    return Path(agent.__file__).read_text()


def test_the_agent_is_python_3_8() -> None:
    ast.parse(source(), feature_version=(3, 8))


def test_the_agent_imports_the_standard_library_alone() -> None:
    imported = set()
    for node in ast.walk(ast.parse(source())):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        assert not isinstance(node, ast.ImportFrom) or node.module == "collections"
    assert imported <= set(sys.stdlib_module_names)
    assert "json" not in imported


def test_the_agent_fits_in_one_argument() -> None:
    # MAX_ARG_STRLEN of Linux is 128 KiB.
    assert len(source().encode()) < 120 * 1024


def test_frames_survive_packing() -> None:
    packed = agent.pack(b"one") + agent.pack(b"")
    first, at = agent.unpack(packed, 0)
    second, end = agent.unpack(packed, at)
    assert (first, second, end) == (b"one", b"", len(packed))
