"""JSON for clients: orjson, with a slow path for what orjson refuses."""

import json
import math
from typing import Any

import orjson


def encode(value: Any) -> bytes:
    """Give `value` as UTF-8 JSON. NaN and infinities become null.

    Text that is no valid Unicode (a lone surrogate, as a model or a sandbox may print) has its
    broken characters replaced by U+FFFD rather than failing the whole answer. Integers beyond
    64 bits are written in full. Raises TypeError for objects that have no JSON form.
    """
    try:
        return orjson.dumps(value)
    except TypeError:
        return json.dumps(_clean(value), ensure_ascii=False, separators=(",", ":")).encode()


def _clean(value: Any) -> Any:
    match value:
        case str():
            return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        case float() if not math.isfinite(value):
            return None
        case dict():
            return {_key(key): _clean(item) for key, item in value.items()}
        case list() | tuple():
            return [_clean(item) for item in value]
        case None | bool() | int() | float():
            return value
        case _:
            # Dates, UUIDs, enums and dataclasses have their form in orjson; all else is refused.
            return orjson.loads(orjson.dumps(value))


def _key(key: Any) -> str:
    return str(_clean(key)) if isinstance(key, str | int) else str(_clean(str(key)))
