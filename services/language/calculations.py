"""Arithmetic asked for in words or signs, as a Python expression for the sandbox."""

import ast
import re
import warnings

_ASK = re.compile(
    r"^(?:please |can you |could you |hey,? )*(?:calculate|compute|work out|evaluate|solve"
    r"|how much is|"
    r"what(?:'s| is|s)(?: the (?:result|value) of)?)\s+(?P<en>.+?)[\s?=.!]*$"
    r"|^(?P<ko>.+?)\s*(?:은|는|이|가|을|를)?\s*(?:얼마(?:야|예요|에요|입니까|죠|지)?|몇이?(?:야"
    r"|예요|에요|지)|"
    r"계산(?:해|하).*|뭐(?:야|예요))?[\s?=.!]*$",
    re.IGNORECASE | re.DOTALL,
)
_KO_ASK = re.compile(r"^계산해?\s*(?:줘|주세요)?\s*[:：]?\s*")
_WORDS = (
    (
        re.compile(r"(\d+(?:\.\d+)?)\s*(?:%|percent|퍼센트|프로)\s*(?:of|의)\s*", re.IGNORECASE),
        r"\1/100*",
    ),
    (re.compile(r"(?:의\s*)?제곱근\s*|\b(?:the )?square root of\s*", re.IGNORECASE), "sqrt "),
    (re.compile(r"\bto the power of\b|\braised to\b|\*\*|\^|의\s*거듭제곱", re.IGNORECASE), "**"),
    (re.compile(r"\bsquared\b|의?\s*제곱", re.IGNORECASE), "**2"),
    (re.compile(r"\bcubed\b", re.IGNORECASE), "**3"),
    (
        re.compile(r"\bmultiplied by\b|\btimes\b|곱하기|[×·]|(?<=\d)\s*x\s*(?=\d)", re.IGNORECASE),
        "*",
    ),
    (re.compile(r"\bdivided by\b|\bover\b|나누기|÷", re.IGNORECASE), "/"),
    (re.compile(r"\bplus\b|더하기", re.IGNORECASE), "+"),
    (re.compile(r"\bminus\b|빼기|[−–]", re.IGNORECASE), "-"),
    (re.compile(r"\bmod(?:ulo)?\b", re.IGNORECASE), "%"),
    (re.compile(r"(?<=\d),(?=\d{3}\b)"), ""),
    (re.compile(r"\bsqrt\s+(\d+(?:\.\d+)?)"), r"sqrt(\1)"),
)
_FUNCTIONS = frozenset(
    {"sqrt", "sin", "cos", "tan", "log", "log2", "log10", "exp", "factorial", "abs", "round", "gcd"}
    | {"min", "max", "sum", "pow", "floor", "ceil", "comb", "perm", "pi", "e", "tau"}
)
_BUILTINS = frozenset({"abs", "round", "min", "max", "sum", "pow"})
_SHAPE = re.compile(r"[\d\s.+\-*/%(),a-z]{3,200}")


def _parsed(code: str) -> ast.Module | None:
    """The syntax tree, None where this is no Python. Warnings about it are not ours to print."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return ast.parse(code)
        except (SyntaxError, ValueError, MemoryError, RecursionError):
            return None


def _is_arithmetic(expression: str) -> bool:
    """Whether this is numbers, operators and known functions, with at least one of the latter."""
    tree = _parsed(expression)
    if tree is None:
        return False
    allowed = (
        ast.Module,
        ast.Expr,
        ast.BinOp,
        ast.UnaryOp,
        ast.Call,
        ast.Constant,
        ast.Name,
        ast.Load,
    )
    has_work = False
    for node in ast.walk(tree):
        if isinstance(node, ast.operator | ast.unaryop):
            continue
        if not isinstance(node, allowed):
            return False
        if isinstance(node, ast.Constant) and not isinstance(node.value, int | float):
            return False
        if isinstance(node, ast.Name) and node.id not in _FUNCTIONS:
            return False
        has_work = has_work or isinstance(node, ast.BinOp | ast.Call)
    return has_work


def read(text: str) -> str | None:
    """The arithmetic expression a message consists of; None if it is anything else."""
    text = text.strip()
    if len(text) > 300:
        return None
    match = _ASK.match(_KO_ASK.sub("", text))
    if match is None:
        return None
    expression = (match["en"] or match["ko"] or "").lower()
    for pattern, sign in _WORDS:
        expression = pattern.sub(sign, expression)
    expression = " ".join(expression.split()).strip(" ?=.")
    if not _SHAPE.fullmatch(expression) or not _is_arithmetic(expression):
        return None
    return expression


def program(expression: str) -> str:
    """A Python program that prints the value of an expression given by `read`."""
    names = {node.id for node in ast.walk(ast.parse(expression)) if isinstance(node, ast.Name)}
    imported = sorted(names - _BUILTINS)
    head = f"from math import {', '.join(imported)}\n\n" if imported else ""
    return f"{head}print({expression})"


def shown(code: str) -> str:
    """Python code that also prints its value where the whole of it is one expression.

    So "run `2**10`" shows 1024, as an interactive interpreter would.
    """
    tree = _parsed(code)
    if tree is None or len(tree.body) != 1 or not isinstance(tree.body[0], ast.Expr):
        return code
    value = tree.body[0].value
    if isinstance(value, ast.Call):
        name = value.func.id if isinstance(value.func, ast.Name) else ""
        if name not in {"sum", "len", "max", "min", "sorted", "abs", "round", "pow", "list", "str"}:
            return code
    if isinstance(value, ast.Await | ast.Yield | ast.YieldFrom):
        return code
    return f"print({code.strip()})"
