"""The agent's text must fit the oldest Python of an image and one argument of a command."""

import ast
import builtins
import re
import symtable
import sys
from pathlib import Path

from sandbox import agent
from sandbox.inside import wire

FOLDER = Path(agent.__file__).with_name("inside")


def test_the_agent_is_python_3_8() -> None:
    ast.parse(agent.source(), feature_version=(3, 8))


def test_the_agent_imports_the_standard_library_alone() -> None:
    imported = set()
    for node in ast.walk(ast.parse(agent.source())):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        assert not isinstance(node, ast.ImportFrom) or node.module == "_collections"
    assert imported <= set(sys.stdlib_module_names)
    # Those that take long to load, or that a small Python lacks.
    assert not imported & {"json", "socket", "typing", "re", "hashlib", "subprocess", "asyncio"}


def test_the_agent_fits_in_one_argument() -> None:
    # MAX_ARG_STRLEN of Linux is 128 KiB.
    assert len(agent.source().encode()) < 120 * 1024


def test_every_part_travels() -> None:
    names = {path.stem for path in FOLDER.glob("*.py")} - {"__init__"}
    assert set(agent.PARTS) == names
    assert (agent.PARTS[0], agent.PARTS[-1]) == ("wire", "main")


def test_the_parts_share_no_name() -> None:
    # Joined they are one module, where the later of two would win in silence.
    owners: dict[str, str] = {}
    for part in agent.PARTS:
        for node in ast.parse((FOLDER / f"{part}.py").read_text()).body:
            names: list[str] = []
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                names = [node.name]
            elif isinstance(node, ast.Assign | ast.AnnAssign):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                walked = [inner for target in targets for inner in ast.walk(target)]
                names = [inner.id for inner in walked if isinstance(inner, ast.Name)]
            for name in names:
                assert owners.setdefault(name, part) == part, name


def test_the_joined_text_defines_whatever_it_uses() -> None:
    table = symtable.symtable(agent.source(), "agent", "exec")
    known = {symbol.get_name() for symbol in table.get_symbols() if symbol.is_assigned()}
    known |= {symbol.get_name() for symbol in table.get_symbols() if symbol.is_imported()}
    known |= {symbol.get_name() for symbol in table.get_symbols() if symbol.is_namespace()}
    known |= set(dir(builtins)) | {"__name__"}

    def missing(scope: symtable.SymbolTable) -> set[str]:
        found = {s.get_name() for s in scope.get_symbols() if s.is_global()} - known
        for child in scope.get_children():
            found |= missing(child)
        return found

    assert missing(table) == set()


def test_annotations_and_comments_stay_behind() -> None:
    tree = ast.parse(agent.source())
    for node in ast.walk(tree):
        assert not isinstance(node, ast.AnnAssign)
        if isinstance(node, ast.FunctionDef):
            assert node.returns is None
            assert ast.get_docstring(node) is None
            assert all(argument.annotation is None for argument in node.args.args)
    assert agent.source().count("#") == 1
    assert agent.source().startswith(agent.TITLE + "\n")


def test_frames_survive_packing() -> None:
    packed = wire.pack(b"one") + wire.pack(b"")
    first, at = wire.unpack(packed, 0)
    second, end = wire.unpack(packed, at)
    assert (first, second, end) == (b"one", b"", len(packed))


def test_no_two_frames_share_a_number() -> None:
    lines = (FOLDER / "wire.py").read_text().split("# From the client.")[1].split("HELLO_BODY")[0]
    frames = re.findall(r"[A-Z_]{3,}", lines)
    kinds = {name: getattr(wire, name) for name in frames}
    assert len(frames) == len(set(kinds.values())) == 46
    assert (kinds["KILL"], kinds["REMOVE"], kinds["MEASURE"], kinds["PACK"]) == (11, 24, 26, 30)
    assert (kinds["LISTEN"], kinds["DATA"], kinds["WRITE_CREDIT"], kinds["ACCEPTED"]) == (
        35, 71, 74, 77,
    )  # fmt: skip
