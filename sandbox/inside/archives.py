"""Whole trees: packed into an archive, and made from one.

An archive is unpacked beside its target, into a folder of its own, and moved there when it is
whole: nothing of one that is broken off, or refused, is left behind.
"""

import os
import stat
from typing import TYPE_CHECKING, Any

from sandbox.inside.core import PARTS, Agent
from sandbox.inside.files import Files
from sandbox.inside.packing import Packed, as_item, oversized, tree
from sandbox.inside.paths import write_all
from sandbox.inside.processes import leave_agent
from sandbox.inside.tars import TarWriter
from sandbox.inside.unpacking import Arriving, Unpacking, merge
from sandbox.inside.wire import (
    HELD_AT,
    HOLD,
    KEEP_LINKS,
    PACK,
    READ_HEAD,
    STAGING,
    TAR,
    TAR_GZ,
    UNPACK_HEAD,
    UNPACK_OPEN,
    UNPACKED,
    ZIP,
    Refused,
    unpack,
)
from sandbox.inside.zips import ZipWriter

if TYPE_CHECKING:
    from typing import NoReturn


class Archives:
    """Operations on whole trees, each in a worker."""

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        self.files = agent.part(Files)
        self.workspace = self.files.workspace
        agent.operations[PACK] = self.on_pack
        agent.operations[UNPACK_OPEN] = self.on_unpack

    def on_pack(self, op: int, body: bytes) -> None:
        content, most, credit = READ_HEAD.unpack_from(body)
        style = body[READ_HEAD.size]
        path, _ = unpack(body, READ_HEAD.size + 1)
        check_style(style)
        folder, name = self.workspace.walk(path, True)
        try:
            os.stat(name, dir_fd=folder, follow_symlinks=False)
        finally:
            os.close(folder)

        def work(output: int, _: int) -> None:
            self.pack(path, style, Packed(output, style, most), content)

        self.agent.fork_worker(op, work, credit)

    def pack(self, path: bytes, style: int, packed: Packed, content: int) -> None:
        """Pack files of at most `content` bytes, holes counted; 0: however many."""
        writer: Any = ZipWriter(packed.write) if style == ZIP else TarWriter(packed.write)
        folder, name = self.workspace.walk(path, True)
        info = os.stat(name, dir_fd=folder, follow_symlinks=False)
        found: Any = [(folder, name, name, info)]
        if stat.S_ISDIR(info.st_mode):
            found = tree(os.open(name, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=folder))
        links: dict[tuple[int, int], bytes] = {}
        taken = 0
        for where, base, shown, entry in found:
            item = as_item(where, base, shown, entry, None if style == ZIP else links)
            if item is None:
                continue
            taken += item.size
            if 0 < content < taken:
                raise oversized(shown, content)
            writer.add(item)
        writer.finish()
        packed.finish()

    def on_unpack(self, op: int, body: bytes) -> None:
        style, most, entries, ratio = UNPACK_HEAD.unpack_from(body)
        path, at = unpack(body, UNPACK_HEAD.size)
        keeps, holds = bool(style & KEEP_LINKS), bool(style & HOLD)
        style &= ~(KEEP_LINKS | HOLD)
        check_style(style)
        self.check_target(path)
        number = int.from_bytes(os.urandom(6), "big")
        if holds:
            (number,) = HELD_AT.unpack_from(body, at)
        # As drafts of single files are called, which nobody looks at.
        staging = STAGING % number

        def work(output: int, source: int) -> bytes:
            os.mkdir(os.path.join(self.workspace.root, staging), 0o700)
            draft = self.workspace.open(staging, os.O_RDONLY | os.O_DIRECTORY)
            arriving = Arriving(source, holds)
            unpacking = Unpacking(draft, arriving, (most, entries, ratio), keeps)
            try:
                unpacking.run(style)
                if holds:
                    write_all(output, UNPACKED.pack(unpacking.bytes, unpacking.entries))
                    arriving.wait()
                self.files.make_dirs(path)
                target = self.workspace.open(path, os.O_RDONLY | os.O_DIRECTORY)
                merge(draft, target, is_trial=True)
                merge(draft, target, is_trial=False)
            finally:
                self.workspace.clear(os.open(self.workspace.root, os.O_RDONLY), staging)
            return UNPACKED.pack(unpacking.bytes, unpacking.entries)

        self.agent.fork_worker(op, work, UNPACKED.size if holds else 0, receives=True)
        pid = self.agent.workers[op].pid
        settle = self.agent.children[pid]

        def on_exit(status: int) -> None:
            # However it ended, by an answer, CANCEL or a signal of user code.
            self.clean(staging)
            settle(status)

        self.agent.children[pid] = on_exit

    def check_target(self, path: bytes) -> None:
        """Find out early what stands in the way; what is not there is made at the end."""
        try:
            fd = self.workspace.open(path, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            return
        os.close(fd)

    def clean(self, staging: bytes) -> None:
        """Remove what an archive was unpacked into, in a child that nobody waits for."""
        try:
            top = os.open(self.workspace.root, os.O_RDONLY | os.O_DIRECTORY)
        except OSError:
            return
        try:
            os.rmdir(staging, dir_fd=top)
        except FileNotFoundError:
            return
        except OSError:
            try:
                pid = os.fork()
            except OSError:
                return
            if pid == 0:
                self.clear(staging)
            self.agent.children[pid] = lambda status: None
        finally:
            os.close(top)

    def clear(self, staging: bytes) -> "NoReturn":
        try:
            null = os.open("/dev/null", os.O_RDWR)
            leave_agent([null, null, 2])
            self.workspace.clear(os.open(self.workspace.root, os.O_RDONLY), staging)
        finally:
            os._exit(0)


def check_style(style: int) -> None:
    if style not in (TAR, TAR_GZ, ZIP):
        raise Refused("INVALID", "There is no such format of archives.")
    if style != TAR:
        try:
            import zlib
        except ImportError:
            zlib = None  # type: ignore[assignment]
        if zlib is None:
            raise Refused(
                "UNSUPPORTED", "The Python inside the sandbox cannot compress: use the format tar."
            )


PARTS.append(Archives)
