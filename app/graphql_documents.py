"""Documents known by name: those of a manifest, and those that clients registered by their hash.

Names are given as `documentId` (`sha256:` and the hash of the text, or an id of the manifest), or
the way of Apollo's automatic persisted queries (`extensions.persistedQuery.sha256Hash`).
"""

import hashlib
import json
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from app.graphql_request import Params
from services.errors import RequestError

_SHA = "sha256:"
_MAX_REGISTERED = 1_000
_MAX_BYTES = 4 * 1024 * 1024
_APOLLO = "apollo-persisted-query-manifest"


class ManifestError(Exception):
    """A manifest that cannot be used; the message says why."""


def read_manifest(path: Path) -> dict[str, str]:
    """Give the texts of a manifest by their ids.

    Takes Apollo's persisted query manifests, and the maps of ids to texts that Relay and GraphQL
    Code Generator write. Raises ManifestError.
    """
    try:
        data = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ManifestError(f"it cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ManifestError(f"it is not JSON in UTF-8: {error}") from error
    if isinstance(data, dict) and data.get("format") == _APOLLO:
        if data.get("version") != 1 or not isinstance(data.get("operations"), list):
            raise ManifestError("expected version 1 of Apollo's manifest, with `operations`")
        pairs = [
            (item.get("id"), item.get("body")) if isinstance(item, dict) else (None, None)
            for item in data["operations"]
        ]
    elif isinstance(data, dict):
        pairs = list(data.items())
    else:
        raise ManifestError("expected a map of ids to texts, or Apollo's manifest")
    if not all(isinstance(id_, str) and id_ and isinstance(text, str) for id_, text in pairs):
        raise ManifestError("expected the text of a document for every id")
    return {str(id_): str(text) for id_, text in pairs}


def hash_of(text: str) -> str:
    """Give the hash a document is known by, in hexadecimal."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


class Documents:
    """The documents of one process that need not be sent as a whole.

    With `may_register` clients add theirs, the least recently used dropped first; another process
    asks for the text again. With `only_trusted` nothing but the manifest's is run, unless the
    viewer is permitted to run anything.
    """

    def __init__(
        self,
        manifest: Mapping[str, str] | None = None,
        *,
        may_register: bool = False,
        only_trusted: bool = False,
        max_registered: int = _MAX_REGISTERED,
        max_bytes: int = _MAX_BYTES,
    ) -> None:
        self.only_trusted = only_trusted
        self._may_register = may_register and not only_trusted
        self._trusted: dict[str, str] = {}
        for id_, text in (manifest or {}).items():
            # An id of the manifest comes before a hash, should one look like another.
            self._trusted.setdefault(_SHA + hash_of(text), text)
            self._trusted[id_] = text
        self._registered: OrderedDict[str, str] = OrderedDict()
        self._max_registered = max_registered
        self._max_bytes = max_bytes
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._registered)

    def text(self, params: Params, *, is_permitted: bool) -> str:
        """Give the text a request means.

        Raises RequestError: PERSISTED_QUERY_NOT_FOUND and PERSISTED_QUERY_NOT_SUPPORTED in the
        words clients wait for to send the whole text, DOCUMENT_NOT_TRUSTED, BAD_REQUEST.
        """
        hashed = _hash_name(params.extensions) if params.extensions else None
        name = params.document_id or hashed
        if params.query is None:
            if params.document_id is not None and hashed is not None:
                self._require_same(params.document_id, hashed)
            return self._known(name or "", is_apollo=params.document_id is None)
        if name is not None and name.startswith(_SHA) and name != _SHA + hash_of(params.query):
            # The second in Apollo's words.
            raise RequestError(
                "BAD_REQUEST",
                "`documentId` is not the hash of `query`."
                if params.document_id
                else "provided sha does not match query",
            )
        if name is not None and not name.startswith(_SHA) and name != hash_of(params.query):
            known = self._known(name, is_apollo=False)
            if known != params.query:
                told = "`documentId` names another document than `query`."
                raise RequestError("BAD_REQUEST", told)
        is_free = is_permitted or not self.only_trusted
        if not is_free and _SHA + hash_of(params.query) not in self._trusted:
            raise RequestError(
                "DOCUMENT_NOT_TRUSTED",
                "This server runs the documents of its manifest alone, and this is none of them. "
                "Send a `documentId` that it knows.",
            )
        return params.query

    def register(self, params: Params) -> None:
        """Remember a valid document by the hash it came with, if that is allowed."""
        text = params.query
        if not self._may_register or text is None:
            return
        name = params.document_id or _hash_name(params.extensions)
        if not name or not name.startswith(_SHA):
            return
        if name in self._trusted or name in self._registered or len(text) > self._max_bytes // 8:
            return
        self._registered[name] = text
        self._bytes += len(text)
        while len(self._registered) > self._max_registered or self._bytes > self._max_bytes:
            _, dropped = self._registered.popitem(last=False)
            self._bytes -= len(dropped)

    def _require_same(self, name: str, hashed: str) -> None:
        if _SHA + hash_of(self._known(name, is_apollo=False)) != hashed:
            told = "`documentId` and `persistedQuery` name different documents; send one of them."
            raise RequestError("BAD_REQUEST", told)

    def _known(self, name: str, *, is_apollo: bool) -> str:
        text = self._trusted.get(name)
        if text is None and (text := self._registered.get(name)) is not None:
            self._registered.move_to_end(name)
        if text is not None:
            return text
        if is_apollo and not self._may_register and not self._trusted:
            raise RequestError("PERSISTED_QUERY_NOT_SUPPORTED", "PersistedQueryNotSupported")
        raise RequestError(
            "PERSISTED_QUERY_NOT_FOUND",
            "PersistedQueryNotFound"
            if is_apollo
            else f"There is no document with the id {name[:100]!r} here.",
        )


def _hash_name(extensions: Mapping[str, Any] | None) -> str | None:
    """Give the name by Apollo's way, or None. Raises RequestError BAD_REQUEST."""
    persisted = (extensions or {}).get("persistedQuery")
    if persisted is None:
        return None
    given = persisted.get("sha256Hash") if isinstance(persisted, dict) else None
    if not isinstance(given, str) or not given or persisted.get("version") != 1:
        raise RequestError(
            "BAD_REQUEST",
            "`extensions.persistedQuery` must be a map with `version` 1 and `sha256Hash`.",
        )
    return _SHA + given.lower()
