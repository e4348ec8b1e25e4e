"""Files on their way into a sandbox: whoever brings them scans them, and no watch does beside."""

import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

# What the agent writes a file to before it takes its place.
DRAFT: Final = re.compile(r"(?:^|/)\.[^/]*\.\d+\.part(?:/|$)")
_OF_FILE = re.compile(r"((?:.*/)?)\.([^/]*)\.\d+\.part", re.DOTALL)
# The agent shortens the names of drafts.
_NAME_BYTES = 200
# Of sandboxes: files that are written, and folders at the top that archives are unpacked to.
_files: Counter[tuple[str, str]] = Counter()
_folders: Counter[tuple[str, str]] = Counter()


@contextmanager
def writing(sandbox_id: str, path: str) -> Iterator[None]:
    """Be bringing a file; the path is relative to the workspace, and in its shortest form."""
    folder, slash, name = path.rpartition("/")
    short = name.encode("utf-8", "surrogateescape")[:_NAME_BYTES]
    key = (sandbox_id, folder + slash + short.decode("utf-8", "surrogateescape"))
    with _counted(_files, key):
        yield


@contextmanager
def unpacking(sandbox_id: str, folder: str) -> Iterator[None]:
    """Be looking at what is in a folder at the top of the workspace."""
    with _counted(_folders, (sandbox_id, folder)):
        yield


@contextmanager
def _counted(counter: Counter[tuple[str, str]], key: tuple[str, str]) -> Iterator[None]:
    counter[key] += 1
    try:
        yield
    finally:
        counter[key] -= 1
        if not counter[key]:
            del counter[key]


def are_brought(sandbox_id: str, path: str) -> bool:
    """Tell whether these are bytes that somebody brings, and scans, at this moment."""
    if (sandbox_id, path.partition("/")[0]) in _folders:
        return True
    draft = _OF_FILE.fullmatch(path)
    return draft is not None and (sandbox_id, draft[1] + draft[2]) in _files
