"""Arguments of a tool: read from JSON, checked by the tool's JSON Schema, explained when wrong."""

import functools
import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import orjson

from services.errors import UserError, UserErrorCode, UserErrors

if TYPE_CHECKING:
    from jsonschema import Draft202012Validator

MAX_BYTES = 262_144
_MAX_DEPTH = 32
_MAX_SHOWN = 80
# What an earlier step of a plan made, to be filled in when the step runs.
REFERENCE = re.compile(r"\{\{\s*steps\.\d+(?:\.\w+)*\s*\}\}")
_UNFIT = re.compile("[\x00\ud800-\udfff]")
_ARTICLES = {
    "string": "a string",
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "object": "an object",
    "array": "a list",
    "null": "null",
}

Path = tuple[str, ...]


def read(given: str | Mapping[str, Any], path: Path = ()) -> dict[str, Any]:
    """Give arguments as a JSON object that can be stored; a model's empty text is no arguments.

    Raises UserError LIMIT beyond 256 KiB, INVALID when it is no JSON object, or holds what no JSON
    text or no database can: NaN, NUL, half a surrogate pair, more than 32 levels.
    """
    arguments = _parse(given, path) if isinstance(given, str) else dict(given)
    _check_sound(arguments, path)
    return arguments


def _parse(text: str, path: Path) -> dict[str, Any]:
    raw = text.strip().encode("utf-8", "surrogatepass")
    if len(raw) > MAX_BYTES:
        raise _too_large(len(raw), path)
    try:
        value = orjson.loads(raw) if raw else {}
    except orjson.JSONDecodeError as error:
        raise UserError(
            UserErrorCode.INVALID, f"The arguments are not valid JSON: {error}.", path
        ) from error
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise UserError(
            UserErrorCode.INVALID,
            f"The arguments must be a JSON object, not {_kind(value)}.",
            path,
        )
    return value


def check(
    name: str,
    schema: Mapping[str, Any],
    arguments: Mapping[str, Any],
    *,
    path: Path = (),
    allows_references: bool = False,
) -> dict[str, Any]:
    """Give the arguments of tool `name`, as read by `read`, with defaults filled in.

    An optional argument given as null counts as left out, and a word of a fixed list may be spelled
    in any case. With `allows_references`, text like `{{steps.0.output}}` stands for a value not
    known yet: alone it may stand for anything, within a text it is part of the text.

    Raises UserErrors naming every argument at fault below `path`.
    """
    properties: Mapping[str, Any] = schema.get("properties", {})
    required = set(schema.get("required", ()))
    values = {
        key: _spelled(value, properties.get(key, {}))
        for key, value in arguments.items()
        if value is not None or key in required or key not in properties
    }
    pending = {
        key
        for key, value in values.items()
        if allows_references and key in properties and _is_pending(value, properties[key])
    }
    known = {key: value for key, value in values.items() if key not in pending}
    errors = [
        _explain(name, properties, error, path)
        for error in _validator(_without(schema, pending)).iter_errors(known)
    ]
    if errors:
        raise UserErrors(sorted(errors, key=lambda error: error.path))
    defaults = {key: item["default"] for key, item in properties.items() if "default" in item}
    return defaults | values


def _is_pending(value: Any, schema: Mapping[str, Any]) -> bool:
    if not isinstance(value, str):
        return False
    if REFERENCE.fullmatch(value.strip()):
        return True
    return schema.get("type") == "string" and REFERENCE.search(value) is not None


def _spelled(value: Any, schema: Mapping[str, Any]) -> Any:
    """Give a word of a fixed list in the list's spelling."""
    if isinstance(value, str) and "enum" in schema and value not in schema["enum"]:
        by_lower = {str(word).lower(): word for word in schema["enum"]}
        return by_lower.get(value.strip().lower(), value)
    return value


def _without(schema: Mapping[str, Any], pending: set[str]) -> str:
    required = [key for key in schema.get("required", ()) if key not in pending]
    return json.dumps({**schema, "required": required}, sort_keys=True)


@functools.lru_cache(maxsize=256)
def _validator(schema: str) -> "Draft202012Validator":
    # A tenth of a second to import, which a process that runs no tools need not pay.
    from jsonschema import Draft202012Validator

    return Draft202012Validator(json.loads(schema))


def _check_sound(arguments: dict[str, Any], path: Path) -> None:
    def walk(value: Any, place: Path, depth: int) -> None:
        problem = None
        if depth > _MAX_DEPTH:
            problem = f"is nested more than {_MAX_DEPTH} levels deep"
        elif isinstance(value, float) and not math.isfinite(value):
            problem = "must be a finite number"
        elif isinstance(value, str) and _UNFIT.search(value):
            problem = "contains a NUL or invalid character; remove it"
        if problem is not None:
            raise UserError(
                UserErrorCode.INVALID, f"{_named(place[len(path) :])} {problem}.", place
            )
        if isinstance(value, Mapping):
            for key, item in value.items():
                walk(key, (*place, "?"), depth + 1)
                walk(item, (*place, str(key)), depth + 1)
        elif isinstance(value, list | tuple):
            for index, item in enumerate(value):
                walk(item, (*place, str(index)), depth + 1)

    walk(arguments, path, 0)
    try:
        size = len(orjson.dumps(arguments))
    except TypeError as error:
        raise UserError(
            UserErrorCode.INVALID, f"The arguments are not JSON: {error}.", path
        ) from error
    if size > MAX_BYTES:
        raise _too_large(size, path)


def _too_large(size: int, path: Path) -> UserError:
    return UserError(
        UserErrorCode.LIMIT,
        f"The arguments have {size:,} bytes; at most {MAX_BYTES:,} are allowed.",
        path,
    )


def _explain(name: str, properties: Mapping[str, Any], error: Any, path: Path) -> UserError:
    place = tuple(str(part) for part in error.absolute_path)
    keyword, expected = error.validator, error.validator_value
    if keyword == "required":
        missing = _missing(error)
        what = _expectation(properties.get(missing, {}))
        return UserError(
            UserErrorCode.REQUIRED,
            f"The tool {name} needs the argument {_named((*place, missing))}{what}.",
            (*path, *place, missing),
        )
    if keyword == "additionalProperties":
        known = ", ".join(f"`{key}`" for key in properties) or "no arguments"
        extra = sorted(set(error.instance) - set(properties))
        return UserError(
            UserErrorCode.INVALID,
            f"The tool {name} has no argument {_named((*place, extra[0]))}; it takes {known}.",
            (*path, *place, extra[0]),
        )
    code = UserErrorCode.LIMIT if keyword in ("maxLength", "maxItems") else UserErrorCode.INVALID
    if keyword == "maxLength":
        found = f"it has {len(error.instance):,} characters"
        wanted = f"at most {expected:,} characters"
    elif keyword == "minLength":
        code, found, wanted = UserErrorCode.REQUIRED, "it is empty", "some text"
    else:
        found, wanted = f"it is {_shown(error.instance)}", _wanted(error)
    return UserError(
        code,
        f"The argument {_named(place)} of the tool {name} must be {wanted}; {found}.",
        (*path, *place),
    )


def _missing(error: Any) -> str:
    # One error for each missing property; the message quotes its name first.
    found: Sequence[str] = [key for key in error.validator_value if repr(key) in error.message]
    return found[0]


def _expectation(schema: Mapping[str, Any]) -> str:
    kind = _ARTICLES.get(str(schema.get("type")))
    return f" ({kind})" if kind else ""


def _wanted(error: Any) -> str:
    schema, keyword, expected = error.schema, error.validator, error.validator_value
    if keyword == "enum":
        return "one of " + ", ".join(str(value) for value in expected)
    if keyword in ("minimum", "maximum") and isinstance(schema, Mapping):
        low, high = schema.get("minimum"), schema.get("maximum")
        if low is not None and high is not None:
            return f"between {low} and {high}"
        return f"at least {low}" if low is not None else f"at most {high}"
    if keyword == "type":
        kinds = [expected] if isinstance(expected, str) else list(expected)
        return " or ".join(_ARTICLES.get(kind, kind) for kind in kinds)
    return f"as its {keyword} says ({_shown(expected)})"


def _named(place: Path) -> str:
    return f"`{'.'.join(place)}`" if place else "The arguments"


def _kind(value: Any) -> str:
    for kind, article in (
        (bool, "true or false"),
        (int, "a number"),
        (float, "a number"),
        (str, "a string"),
        (list, "a list"),
        (Mapping, "an object"),
    ):
        if isinstance(value, kind):
            return article
    return "null"


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    shown = text if len(text) <= _MAX_SHOWN else text[: _MAX_SHOWN - 1] + "…"
    return f"{_kind(value)}, {shown}" if isinstance(value, str | Mapping | list) else shown
