"""Tar: written as GNU's program writes it, read as any program does; and gzip around it."""

from collections.abc import Callable, Iterator
from typing import Any

from sandbox.inside.wire import CHUNK, Refused

BLOCK = 512
MAX_NAME = 4096
MAX_EXTRA = 64 * 1024  # Bytes of one header that extends the next.
MAX_HEADERS = 8  # That extend one entry.
IS_FILE, IS_LINK, IS_SYMLINK, IS_FOLDER = b"0", b"1", b"2", b"5"


class Item:
    """One entry of an archive; `chunks` gives the content of a file, and is read to its end."""

    def __init__(
        self,
        kind: bytes,
        name: bytes,
        mode: int,
        size: int,
        time: int,
        target: bytes,
        chunks: Callable[[], Iterator[bytes]],
    ) -> None:
        self.kind = kind
        self.name = name
        self.mode = mode
        self.size = size
        self.time = time
        self.target = target
        self.chunks = chunks


def damaged(why: str) -> Refused:
    return Refused("INVALID", "The archive is damaged: " + why)


def exactly(source: Any, size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = source.some(size - len(data))
        if not part:
            raise damaged("it ends too early.")
        data += part
    return data


def no_chunks() -> Iterator[bytes]:
    return iter(())


# Writing.


def tar_number(value: int, width: int) -> bytes:
    if value < 8 ** (width - 1):
        return b"%0*o\0" % (width - 1, value)
    return b"\x80" + value.to_bytes(width - 1, "big")


def tar_header(kind: bytes, name: bytes, mode: int, size: int, time: int, target: bytes) -> bytes:
    head = name[:100].ljust(100, b"\0") + tar_number(mode, 8) + tar_number(0, 8) * 2
    head += tar_number(size, 12) + tar_number(max(0, time), 12) + b" " * 8 + kind
    head = (head + target[:100].ljust(100, b"\0") + b"ustar  ").ljust(BLOCK, b"\0")
    return head[:148] + b"%06o\0 " % sum(head) + head[156:]


def padding(size: int) -> bytes:
    return bytes(-size % BLOCK)


class TarWriter:
    """Entries one after the other; `write` takes the bytes."""

    def __init__(self, write: Callable[[bytes], None]) -> None:
        self.write = write

    def add(self, item: Item) -> None:
        for flag, text in ((b"K", item.target), (b"L", item.name)):
            if len(text) > 100:
                text += b"\0"  # noqa: PLW2901 - as it is stored.
                self.write(tar_header(flag, b"././@LongLink", 0o644, len(text), 0, b""))
                self.write(text + padding(len(text)))
        self.write(tar_header(item.kind, item.name, item.mode, item.size, item.time, item.target))
        left = item.size
        for chunk in item.chunks():
            self.write(chunk)
            left -= len(chunk)
        while left > 0:
            # The file has become shorter since its size was written down.
            self.write(bytes(min(left, CHUNK)))
            left -= CHUNK
        self.write(padding(item.size))

    def finish(self) -> None:
        self.write(bytes(2 * BLOCK))


# Reading.


class Inflated:
    """What a gzip stream holds, never more of it at once than is asked for."""

    def __init__(self, source: Any) -> None:
        import zlib

        self.zlib = zlib
        self.source = source
        self.stream = zlib.decompressobj(31)
        self.held = b""
        self.is_begun = False

    def some(self, most: int) -> bytes:
        while True:
            if self.stream.eof:
                self.held = self.stream.unused_data or self.source.some(CHUNK)
                if not self.held.strip(b"\0"):
                    return b""
                self.stream = self.zlib.decompressobj(31)
            elif not self.held:
                self.held = self.source.some(CHUNK)
                if not self.held:
                    raise damaged("it ends too early.")
            try:
                data = self.stream.decompress(self.held, most)
            except self.zlib.error:
                raise damaged("it is no gzip stream.") from None
            self.held = self.stream.unconsumed_tail
            if data:
                return bytes(data)


def tar_value(field: bytes) -> int:
    if field[:1] and field[0] & 0x80:
        value = int.from_bytes(field, "big") & ~(0x80 << 8 * (len(field) - 1))
        return -1 if field[0] & 0x40 else value
    try:
        return int(field.split(b"\0")[0].strip() or b"0", 8)
    except ValueError:
        raise damaged("a number in it is none.") from None


def tar_items(source: Any) -> Iterator[Item]:
    """Entries as they come; the content of each must be read before the next."""
    extra: dict[bytes, bytes] = {}
    headers = 0
    while True:
        head = exactly(source, BLOCK)
        if head == bytes(BLOCK):
            return
        if sum(head) - sum(head[148:156]) + 8 * 32 != tar_value(head[148:156]):
            raise damaged("it is no tar archive.")
        kind, size = head[156:157], tar_value(head[124:136])
        if kind in (b"x", b"L", b"K", b"g"):
            headers += 1
            if not 0 <= size <= MAX_EXTRA or headers > MAX_HEADERS:
                raise damaged("a header of it is too long.")
            text = exactly(source, size + -size % BLOCK)[:size]
            if kind in (b"L", b"K"):
                extra[b"path" if kind == b"L" else b"linkpath"] = text.split(b"\0")[0]
            elif kind == b"x":
                extra.update(pax_records(text))
            continue
        yield tar_item(source, head, extra)
        extra, headers = {}, 0


def pax_records(text: bytes) -> dict[bytes, bytes]:
    found = {}
    while text:
        length, _, rest = text.partition(b" ")
        size = int(length) - len(length) - 1 if length.isdigit() else 0
        key, is_one, value = rest[: max(0, size)].partition(b"=")
        if not is_one or value[-1:] != b"\n":
            raise damaged("a header of it is malformed.")
        if key.startswith(b"GNU.sparse."):
            raise Refused("INVALID", "Archives with sparse files cannot be unpacked.")
        if key in (b"path", b"linkpath", b"size"):
            found[key] = value[:-1]
        text = rest[size:]
    return found


def tar_item(source: Any, head: bytes, extra: dict[bytes, bytes]) -> Item:
    name, kind = head[:100].split(b"\0")[0], head[156:157]
    prefix = head[345:500].split(b"\0")[0]
    if head[257:263] == b"ustar\0" and prefix:
        name = prefix + b"/" + name
    name = extra.get(b"path", name)
    target = extra.get(b"linkpath", head[157:257].split(b"\0")[0])
    size = tar_value(head[124:136])
    if b"size" in extra:
        size = int(extra[b"size"]) if extra[b"size"].isdigit() else -1
    if kind in (b"\0", b"7", b"0"):
        kind = IS_FOLDER if name.endswith(b"/") else IS_FILE
    if kind in (b"3", b"4", b"6"):
        raise Refused("DENIED", "The archive holds a device or a named pipe.")
    if kind not in (IS_FILE, IS_LINK, IS_SYMLINK, IS_FOLDER):
        raise Refused("INVALID", "The archive holds an entry of an unknown kind.")
    if kind != IS_FILE:
        size = 0
    if size < 0:
        raise damaged("a size in it is none.")

    def chunks() -> Iterator[bytes]:
        left = size
        while left:
            data = source.some(min(CHUNK, left))
            if not data:
                raise damaged("it ends too early.")
            left -= len(data)
            yield data
        exactly(source, -size % BLOCK)

    mode, time = tar_value(head[100:108]), tar_value(head[136:148])
    return Item(kind, name, mode, size, time, target, chunks if kind == IS_FILE else no_chunks)
