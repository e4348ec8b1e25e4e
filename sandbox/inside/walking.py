"""Everything there is below a directory, told once."""

import os

from sandbox.inside.changes import MAX_PATH
from sandbox.inside.paths import MAX_DEPTH, Workspace, write_all
from sandbox.inside.wire import CHUNK, ENTRY, Refused

WALK_ENTRIES = 200_000


def walk(workspace: Workspace, top: bytes, output: int) -> None:
    """Write every entry below a directory, at most 200 levels deep.

    One that goes meanwhile may be told or not.
    """
    todo = [b""]
    batch = b""
    left = WALK_ENTRIES
    while todo:
        path = todo.pop()
        whole = top + b"/" + path if path else top
        try:
            folder, name = workspace.walk(whole, not path)
            try:
                flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_NONBLOCK
                inner = os.open(name, flags, dir_fd=folder)
            finally:
                os.close(folder)
        except OSError:
            if not path:
                raise
            continue  # Gone, or not to be read.
        try:
            for child in os.listdir(inner):
                raw = os.fsencode(child)
                shown = path + b"/" + raw if path else raw
                try:
                    record = workspace.entry(inner, raw, shown)
                except OSError:
                    continue
                left -= 1
                if left < 0:
                    raise Refused("TOO_LARGE", "The directory has more than 200000 entries below.")
                if len(shown) > MAX_PATH:
                    continue
                if ENTRY.unpack_from(record)[0] and shown.count(b"/") < MAX_DEPTH:
                    todo.append(shown)
                batch += record
                if len(batch) > CHUNK:
                    write_all(output, batch)
                    batch = b""
        finally:
            os.close(inner)
    write_all(output, batch)
