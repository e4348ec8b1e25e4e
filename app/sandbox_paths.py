"""Paths of files of sandboxes in URLs: any name that text can say, line breaks too."""

from urllib.parse import unquote_to_bytes

from starlette.convertors import Convertor, register_url_convertor
from starlette.types import Scope

from services.errors import UserError, UserErrorCode


class _Whole(Convertor[str]):
    """All that is left of a URL's path. That of Starlette ends at the first line break."""

    regex = r"[\s\S]*"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


register_url_convertor("whole", _Whole())
REST = "{rest:whole}"  # The end of a route.


def read_path(scope: Scope) -> str:
    """Give the path inside the sandbox that a route ends with; `.` when it ends before.

    Raises UserError INVALID for bytes that are no UTF-8: different ones are decoded to the same
    text by servers.
    """
    try:
        unquote_to_bytes(scope.get("raw_path") or b"").decode()
    except UnicodeDecodeError:
        raise UserError(
            UserErrorCode.INVALID,
            "The path is not UTF-8; files of such names travel in the archive of their directory.",
            ("path",),
        ) from None
    return scope["path_params"].get("rest") or "."


__all__ = ["REST", "read_path"]
