"""The program that makes filesystems, for workspaces on disk."""

from tests.servers.base import Place
from tests.servers.packages import find

PER_WORKER = False


async def start(place: Place) -> dict[str, str]:
    """Give the path of the program, where bubblewrap's driver finds it as well."""
    programs = await find(place, {"mkfs.ext4": "e2fsprogs"})
    return {"NOOSPHERE_TEST_MKFS": programs["mkfs.ext4"]}
