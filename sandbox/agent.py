"""The text of the agent, as it travels into a sandbox.

It is the argument of `python3 -c`, which Linux limits to 128 KiB, and it is read by whatever
Python an image brings: the parts in `sandbox.inside` are joined without their imports of one
another, annotations, docstrings and comments.
"""

import ast
import functools
import re
from pathlib import Path

from sandbox.inside.wire import HEADER, VERSION

__all__ = ["HEADER", "PARTS", "VERSION", "source", "spares"]

# In this order; each uses only what stands before it. What registers itself in PARTS of core
# stands between it and main.
PARTS = (
    "wire",
    "native",
    "barriers",
    "processes",
    "strays",
    "terminals",
    "paths",
    "workers",
    "lateness",
    "core",
    "shims",
    "inputs",
    "keeping",
    "outputs",
    "execution",
    "results",
    "executions",
    "resuming",
    "files",
    "directories",
    "changes",
    "walking",
    "watching",
    "tars",
    "zips",
    "packing",
    "unpacking",
    "archives",
    "listing",
    "tunnels",
    "main",
)
# The first line, so that a list of processes says what this one is.
TITLE = "# The agent of this sandbox: process 1, and the shims and workers below it."
MAX_SPARES = 4
# The modules below these, which load a tenth as long and hold all that is used.
_BELOW = {"signal": "_signal", "collections": "_collections"}
# Of the standard library, for annotations alone.
_TYPING = ("typing", "collections.abc")


@functools.cache
def source() -> str:
    """The whole text, for Python 3.8 and later."""
    folder = Path(__file__).with_name("inside")
    imports: dict[str, None] = {}
    bodies = []
    for name in PARTS:
        tree = _Bare().visit(ast.parse((folder / f"{name}.py").read_text()))
        rest = []
        for statement in tree.body:
            if isinstance(statement, ast.Import | ast.ImportFrom):
                imports[ast.unparse(statement)] = None
            else:
                rest.append(ast.unparse(statement))
        bodies.append("\n".join(rest))
    text = "\n".join([TITLE, *imports, *bodies]) + "\n"
    return re.sub(r"^(?: {4})+", lambda found: " " * (len(found[0]) // 4), text, flags=re.MULTILINE)


def spares(pids: int) -> int:
    """How many shims an agent may keep ahead of need: they count against the limit of processes."""
    return max(1, min(MAX_SPARES, pids // 32))


class _Bare(ast.NodeTransformer):
    """Drops what the interpreter inside has no use for."""

    def _body(self, node: ast.AST) -> ast.AST:
        body: list[ast.stmt] = node.body  # type: ignore[attr-defined]
        if ast.get_docstring(node) is not None:  # type: ignore[arg-type]
            del body[0]
        self.generic_visit(node)
        if not body and not isinstance(node, ast.Module):
            body.append(ast.Pass())
        return node

    visit_Module = visit_ClassDef = _body  # noqa: N815 - names that ast looks for.

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.returns = None
        return self._body(node)

    def visit_arg(self, node: ast.arg) -> ast.arg:
        node.annotation = None
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.stmt | None:
        if node.value is None:
            return None
        return ast.copy_location(ast.Assign([node.target], node.value), node)

    def visit_Import(self, node: ast.Import) -> ast.Import:
        for alias in node.names:
            if alias.name in _BELOW:
                alias.asname = alias.asname or alias.name
                alias.name = _BELOW[alias.name]
        return node

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.ImportFrom | None:
        module = node.module or ""
        node.module = _BELOW.get(module, module)
        return None if module.startswith("sandbox.") or module in _TYPING else node

    def visit_If(self, node: ast.If) -> ast.stmt | None:
        if isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            return None
        self.generic_visit(node)
        return node
