"""What an operation, or one event of a stream, answers."""

from collections.abc import Mapping, Sequence
from typing import Any

from schema.execution.encoding import encode
from schema.execution.errors import ErrorDict


class Result:
    """The answer to an operation or to one event of a subscription.

    `is_executed` is False when nothing ran (syntax, validation, limits, sign-in): the answer then
    has no `data` entry at all. `errors` are formatted already, and masked.
    """

    __slots__ = ("_json", "cursor", "data", "errors", "extensions", "is_executed")

    def __init__(
        self,
        data: Any = None,
        errors: Sequence[ErrorDict] = (),
        extensions: Mapping[str, Any] | None = None,
        *,
        is_executed: bool = True,
    ) -> None:
        self.data = data
        self.errors = list(errors)
        self.extensions = extensions
        self.is_executed = is_executed
        self.cursor: str | None = None
        self._json: bytes | None = None

    @classmethod
    def refused(
        cls, errors: Sequence[ErrorDict], extensions: Mapping[str, Any] | None = None
    ) -> "Result":
        """Give the answer to a request of which nothing was executed."""
        return cls(None, errors, extensions, is_executed=False)

    def payload(self) -> dict[str, Any]:
        """Give the response map of the GraphQL specification."""
        payload: dict[str, Any] = {}
        if self.errors:
            payload["errors"] = self.errors
        if self.is_executed:
            payload["data"] = self.data
        if self.extensions:
            payload["extensions"] = self.extensions
        return payload

    def json(self) -> bytes:
        """Give the response as JSON, encoded once however many readers share this result.

        Raises TypeError if a custom scalar let something without a JSON form through.
        """
        if self._json is None:
            self._json = encode(self.payload())
        return self._json

    def codes(self) -> set[str | None]:
        """Give the distinct `extensions.code` of the errors."""
        return {error.get("extensions", {}).get("code") for error in self.errors}

    def __repr__(self) -> str:
        return f"Result({self.payload()!r})"


def extensions_of(context: Any) -> Mapping[str, Any] | None:
    """Give what a resolver's context sends along with the answer."""
    extensions = getattr(context, "extensions", None)
    if not extensions or not isinstance(extensions, dict | Mapping):
        return None
    # A copy: the next event of the same context may change the map while this one is queued.
    return dict(extensions)
