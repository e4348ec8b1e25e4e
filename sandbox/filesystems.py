"""Use of filesystems, as their own counts tell it."""

import os


def use_of(path: str) -> tuple[int, int]:
    """Bytes and inodes in use on the filesystem at a path. Raises OSError."""
    found = os.statvfs(path)
    return (found.f_blocks - found.f_bfree) * found.f_frsize, found.f_files - found.f_ffree
