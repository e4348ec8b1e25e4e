"""Files: read and written in pieces, listed, made, renamed, removed and measured."""

import os
import stat
import struct

from sandbox.inside.core import PARTS, Agent
from sandbox.inside.paths import Workspace, write_all
from sandbox.inside.wire import (
    AMOUNT,
    CHUNK,
    DATA,
    DONE,
    LIST,
    LIST_PAGE,
    MAKE_DIR,
    MAX_ENTRIES,
    MEASURE,
    READ,
    READ_HEAD,
    REMOVE,
    RENAME,
    STAT,
    USED,
    WRITE_CREDIT,
    WRITE_OPEN,
    Refused,
    refusal,
    unpack,
)

FEW_ENTRIES = 256  # Are listed at once; more by a worker.
WHOLE_LIST = 1 << 31  # Credit for any list.


class Reader:
    """One file on its way to the client, as far as credit allows."""

    def __init__(self, fd: int, left: int, credit: int) -> None:
        self.fd = fd
        self.left = left
        self.credit = credit


class Writer:
    """One file on its way in: written beside its target, renamed over it at the end."""

    def __init__(self, folder: int, name: bytes, draft: bytes, fd: int) -> None:
        self.folder = folder
        self.name = name
        self.draft = draft
        self.fd = fd


class Files:
    """Operations on the workspace."""

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        self.workspace = Workspace(os.fsencode(agent.options.get("workspace", "/workspace")))
        self.readers: dict[int, Reader] = {}
        self.writers: dict[int, Writer] = {}
        agent.operations[READ] = self.on_read
        agent.operations[WRITE_OPEN] = self.on_write_open
        agent.operations[LIST] = self.on_list
        agent.operations[STAT] = self.on_stat
        agent.operations[MAKE_DIR] = self.on_make_dir
        agent.operations[RENAME] = self.on_rename
        agent.operations[REMOVE] = self.on_remove
        agent.operations[MEASURE] = self.on_measure
        agent.reset_hooks.append(self.on_reset)
        agent.room_hooks.append(self.on_room)

    def on_reset(self) -> None:
        for op in list(self.readers):
            self.drop_reader(op)
        for op in list(self.writers):
            self.drop_writer(op)

    # Reading.

    def on_read(self, op: int, body: bytes) -> None:
        offset, limit, credit = READ_HEAD.unpack_from(body)
        path, _ = unpack(body, READ_HEAD.size)
        fd = self.workspace.open(path, os.O_RDONLY)
        try:
            mode = os.fstat(fd).st_mode
            if stat.S_ISDIR(mode):
                raise Refused("IS_A_DIRECTORY", "The path is a directory.")
            if not stat.S_ISREG(mode):
                raise Refused("DENIED", "The path is not a regular file.")
            os.lseek(fd, offset, os.SEEK_SET)
        except (OSError, Refused):
            os.close(fd)
            raise
        reader = Reader(fd, limit, credit)
        self.readers[op] = reader
        self.agent.cancel_hooks[op] = lambda: self.drop_reader(op)
        self.agent.credit_hooks[op] = lambda amount: self.on_read_credit(op, amount)
        self.pump(op, reader)

    def on_read_credit(self, op: int, amount: int) -> None:
        reader = self.readers[op]
        reader.credit += amount
        self.pump(op, reader)

    def on_room(self) -> None:
        for op, reader in list(self.readers.items()):
            self.pump(op, reader)

    def pump(self, op: int, reader: Reader) -> None:
        while reader.credit > 0 and not self.agent.is_full():
            data = b""
            try:
                if reader.left > 0:
                    data = os.read(reader.fd, min(CHUNK, reader.left, reader.credit))
            except OSError as error:
                self.agent.fail(op, refusal(error))
                break
            if not data:
                self.agent.send(DONE, op)
                break
            reader.left -= len(data)
            reader.credit -= len(data)
            self.agent.send(DATA, op, data)
        else:
            return
        self.drop_reader(op)

    def drop_reader(self, op: int) -> None:
        os.close(self.readers.pop(op).fd)
        self.agent.forget(op)

    # Writing.

    def on_write_open(self, op: int, body: bytes) -> None:
        (mode,) = struct.unpack_from(">I", body)
        path, _ = unpack(body, 4)
        folder, name = self.workspace.walk(path, True)
        try:
            if name == b".":
                raise Refused("IS_A_DIRECTORY", "The path is a directory.")
            try:
                found = os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode
            except FileNotFoundError:
                found = 0
            if stat.S_ISDIR(found):
                raise Refused("IS_A_DIRECTORY", "The path is a directory.")
            draft = b".%s.%d.part" % (name[:200], op)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
            fd = os.open(draft, flags, mode & 0o777, dir_fd=folder)
        except (OSError, Refused):
            os.close(folder)
            raise
        os.fchmod(fd, mode & 0o777)
        self.writers[op] = Writer(folder, name, draft, fd)
        self.agent.cancel_hooks[op] = lambda: self.drop_writer(op)
        self.agent.data_hooks[op] = lambda data: self.on_data(op, data)
        self.agent.end_hooks[op] = lambda: self.on_data_end(op)

    def on_data(self, op: int, data: bytes) -> None:
        try:
            write_all(self.writers[op].fd, data)
        except OSError:
            # Free the space at once: the rest of the file may be on its way for long.
            self.drop_writer(op)
            raise
        self.agent.send(WRITE_CREDIT, op, AMOUNT.pack(len(data)))

    def on_data_end(self, op: int) -> None:
        writer = self.writers[op]
        try:
            os.rename(writer.draft, writer.name, src_dir_fd=writer.folder, dst_dir_fd=writer.folder)
            writer.draft = b""
        finally:
            self.drop_writer(op)
        self.agent.send(DONE, op)

    def drop_writer(self, op: int) -> None:
        writer = self.writers.pop(op)
        self.agent.forget(op)
        os.close(writer.fd)
        if writer.draft:
            try:
                os.unlink(writer.draft, dir_fd=writer.folder)
            except OSError:
                writer.draft = b""  # Someone else removed it.
        os.close(writer.folder)

    # Directories.

    def on_list(self, op: int, body: bytes) -> None:
        path, at = unpack(body, 0)
        most, after = MAX_ENTRIES, b""
        is_page = at < len(body)
        if is_page:
            most = min(LIST_PAGE.unpack_from(body, at)[0], MAX_ENTRIES)
            after, _ = unpack(body, at + LIST_PAGE.size)
        fd = self.workspace.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            names = os.listdir(fd)
            if len(names) > MAX_ENTRIES and not is_page:
                raise Refused("TOO_LARGE", "The directory has more than 10,000 entries.")
            if len(names) <= FEW_ENTRIES:
                for batch in self.entries(fd, page(names, after, most)):
                    self.agent.send(DATA, op, batch)
                self.agent.send(DONE, op)
                return
        finally:
            os.close(fd)

        def work(output: int, _: int) -> None:
            inner = self.workspace.open(path, os.O_RDONLY | os.O_DIRECTORY)
            for batch in self.entries(inner, page(os.listdir(inner), after, most)):
                write_all(output, batch)

        self.agent.fork_worker(op, work, WHOLE_LIST)

    def entries(self, folder: int, names: list[bytes]) -> list[bytes]:
        """Entries in the order of the names, packed into pieces that each fit a frame; one at
        least.
        """
        batches = [b""]
        for name in names:
            try:
                batches[-1] += self.workspace.entry(folder, name, name)
            except FileNotFoundError:
                continue  # Removed since it was listed.
            if len(batches[-1]) > CHUNK:
                batches.append(b"")
        return batches

    def on_stat(self, op: int, body: bytes) -> None:
        path, at = unpack(body, 0)
        # A byte after the path asks for a link itself, wherever it leads.
        folder, name = self.workspace.walk(path, not any(body[at:]))
        try:
            entry = self.workspace.entry(folder, name, name)
        finally:
            os.close(folder)
        self.agent.send(DATA, op, entry)
        self.agent.send(DONE, op)

    def on_make_dir(self, op: int, body: bytes) -> None:
        path, _ = unpack(body, 1)
        if body[0]:
            self.make_dirs(path)
        else:
            self.make_one(path, exists=False)
        self.agent.send(DONE, op)

    def make_dirs(self, path: bytes) -> None:
        done = b""
        for part in self.workspace.parts(path):
            done = done + b"/" + part if done else part
            if part not in (b"", b".", b".."):
                self.make_one(done, exists=True)

    def make_one(self, path: bytes, exists: bool) -> None:
        folder, name = self.workspace.walk(path, True)
        try:
            os.mkdir(name, 0o755, dir_fd=folder)
        except FileExistsError:
            info = os.stat(name, dir_fd=folder, follow_symlinks=False)
            if not exists or not stat.S_ISDIR(info.st_mode):
                raise
        finally:
            os.close(folder)

    def on_rename(self, op: int, body: bytes) -> None:
        source, at = unpack(body, 0)
        target, _ = unpack(body, at)
        from_folder, from_name = self.workspace.walk(source, False)
        try:
            to_folder, to_name = self.workspace.walk(target, False)
            try:
                if b"." in (from_name, to_name):
                    raise Refused("DENIED", "The workspace itself cannot be renamed.")
                os.rename(from_name, to_name, src_dir_fd=from_folder, dst_dir_fd=to_folder)
            finally:
                os.close(to_folder)
        finally:
            os.close(from_folder)
        self.agent.send(DONE, op)

    def on_remove(self, op: int, body: bytes) -> None:
        path, _ = unpack(body, 1)
        folder, name = self.workspace.walk(path, False)
        try:
            if name == b".":
                raise Refused("DENIED", "The workspace itself cannot be removed.")
            mode = os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode
            if not stat.S_ISDIR(mode):
                os.unlink(name, dir_fd=folder)
            elif body[0]:
                self.agent.fork_worker(op, lambda output, _: self.remove_tree(path), 0)
                return
            else:
                os.rmdir(name, dir_fd=folder)
        finally:
            os.close(folder)
        self.agent.send(DONE, op)

    def remove_tree(self, path: bytes) -> None:
        folder, name = self.workspace.walk(path, False)
        self.workspace.clear(folder, name)

    def on_measure(self, op: int, body: bytes) -> None:
        path, _ = unpack(body, 0)
        folder, name = self.workspace.walk(path, True)
        try:
            found = os.fstatvfs(folder) if name == b"." else None
        finally:
            os.close(folder)
        if found is None:
            fd = self.workspace.open(path, os.O_PATH)
            try:
                found = os.fstatvfs(fd)
            finally:
                os.close(fd)
        used = (found.f_blocks - found.f_bfree) * found.f_frsize
        self.agent.send(DATA, op, USED.pack(used, max(0, found.f_files - found.f_ffree)))
        self.agent.send(DONE, op)


def page(names: list[str], after: bytes, most: int) -> list[bytes]:
    """The first names after one, in the order of what is shown of them: that is valid UTF-8."""
    known = sorted((raw.decode("utf-8", "replace"), raw) for raw in map(os.fsencode, names))
    last = after.decode("utf-8", "replace")
    return [raw for shown, raw in known if shown > last][:most]


PARTS.append(Files)
