"""Zip: written in one pass, read from a file that is there as a whole."""

import os
import stat
import struct
import time
from collections.abc import Callable, Iterator

from sandbox.inside.tars import (
    IS_FILE,
    IS_FOLDER,
    IS_SYMLINK,
    MAX_NAME,
    Item,
    damaged,
    no_chunks,
)
from sandbox.inside.wire import CHUNK, Refused

LOCAL = struct.Struct("<4s5H3I2H")
# signature, version, flags, method, time, date, crc, packed, size, name, extra
CENTRAL = struct.Struct("<4s6H3I5H2I")
# signature, made by, version, flags, method, time, date, crc, packed, size, name, extra, comment,
# disk, internal attributes, external attributes, offset
END = struct.Struct("<4s4H2IH")
# signature, disk, disk of directory, entries here, entries, size, offset, comment
END64 = struct.Struct("<4sQ2H2I4Q")
LOCATOR = struct.Struct("<4sIQI")
FULL = 0xFFFFFFFF
LARGE = 0xF0000000  # Files from here on might not fit 32 bits when they grow.
STREAMED, UTF8 = 0x8, 0x800
UNIX = 3


class ZipWriter:
    """Entries one after the other, each compressed; `write` takes the bytes."""

    def __init__(self, write: Callable[[bytes], None]) -> None:
        import zlib

        self.zlib = zlib
        self.out = write
        self.at = 0
        self.count = 0
        self.directory: list[bytes] = []

    def write(self, data: bytes) -> None:
        self.out(data)
        self.at += len(data)

    def add(self, item: Item) -> None:
        name = item.name + (b"/" if item.kind == IS_FOLDER else b"")
        kinds = {IS_FOLDER: stat.S_IFDIR, IS_SYMLINK: stat.S_IFLNK}
        attributes = (kinds.get(item.kind, stat.S_IFREG) | item.mode) << 16
        moment, offset = dos_time(item.time), self.at
        is_large = item.size >= LARGE
        version = 45 if is_large else 20
        flags = STREAMED | UTF8
        head = (
            b"PK\x03\x04",
            version,
            flags,
            8,
            *moment,
            0,
            *((FULL,) * 2 if is_large else (0, 0)),
        )
        extra = struct.pack("<2H2Q", 1, 16, 0, 0) if is_large else b""
        self.write(LOCAL.pack(*head, len(name), len(extra)) + name + extra)
        stream = self.zlib.compressobj(6, self.zlib.DEFLATED, -15)
        begin, size, crc = self.at, 0, 0
        for chunk in (item.target,) if item.kind == IS_SYMLINK else item.chunks():
            crc = self.zlib.crc32(chunk, crc)
            size += len(chunk)
            self.write(stream.compress(chunk))
        self.write(stream.flush())
        packed = self.at - begin
        self.write(struct.pack("<4sI2Q" if is_large else "<4s3I", b"PK\x07\x08", crc, packed, size))
        wide = b"".join(struct.pack("<Q", n) for n in (size, packed, offset) if n >= FULL)
        extra = struct.pack("<2H", 1, len(wide)) + wide if wide else b""
        lengths = (len(name), len(extra), 0, 0, 0, attributes, min(offset, FULL))
        found = (crc, min(packed, FULL), min(size, FULL))
        made_by = UNIX << 8 | 45
        self.directory.append(
            CENTRAL.pack(b"PK\x01\x02", made_by, version, flags, 8, *moment, *found, *lengths)
            + name
            + extra
        )
        self.count += 1

    def finish(self) -> None:
        offset = self.at
        for record in self.directory:
            self.write(record)
        size, end = self.at - offset, self.at
        if self.count >= 0xFFFF or end >= FULL:
            counts = (self.count, self.count, size, offset)
            self.write(END64.pack(b"PK\x06\x06", END64.size - 12, 45, 45, 0, 0, *counts))
            self.write(LOCATOR.pack(b"PK\x06\x07", 0, end, 1))
        count = min(self.count, 0xFFFF)
        last = (count, count, min(size, FULL), min(offset, FULL), 0)
        self.write(END.pack(b"PK\x05\x06", 0, 0, *last))


def dos_time(seconds: int) -> tuple[int, int]:
    year, month, day, hour, minute, second = time.gmtime(max(0, min(seconds, 4354819198)))[:6]
    if year < 1980:
        return 0, 33
    return hour << 11 | minute << 5 | second // 2, (year - 1980) << 9 | month << 5 | day


class ZipReader:
    """The entries of an open file."""

    def __init__(self, fd: int) -> None:
        import zlib

        self.zlib = zlib
        self.fd = fd
        self.size = os.fstat(fd).st_size

    def read(self, at: int, size: int) -> bytes:
        data = os.pread(self.fd, size, at) if 0 <= at <= self.size else b""
        if len(data) < size:
            raise damaged("it ends too early.")
        return data

    def ending(self) -> tuple[int, int, int]:
        """How many entries there are, how long their directory is, and where."""
        length = min(self.size, END.size + 0xFFFF)
        tail = self.read(self.size - length, length)
        found = tail.rfind(b"PK\x05\x06")
        if found < 0 or len(tail) - found < END.size:
            raise damaged("it is no zip archive.")
        _, disk, _, _, count, size, offset, _ = END.unpack_from(tail, found)
        if disk not in (0, 0xFFFF):
            raise Refused("INVALID", "Archives in several parts cannot be unpacked.")
        at = self.size - length + found - LOCATOR.size
        if at >= 0 and self.read(at, 4) == b"PK\x06\x07":
            _, _, where, _ = LOCATOR.unpack(self.read(at, LOCATOR.size))
            mark, *_, count, size, offset = END64.unpack(self.read(where, END64.size))
            if mark != b"PK\x06\x06":
                raise damaged("its end is malformed.")
        return count, size, offset

    def items(self, most: int) -> Iterator[Item]:
        count, size, at = self.ending()
        if count > most:
            raise Refused("TOO_LARGE", f"The archive has more than {most} entries.")
        end = at + size
        for _ in range(count):
            if at + CENTRAL.size > end:
                raise damaged("its directory is malformed.")
            fields = CENTRAL.unpack(self.read(at, CENTRAL.size))
            names, extras, comments = fields[10:13]
            if fields[0] != b"PK\x01\x02" or names > MAX_NAME:
                raise damaged("its directory is malformed.")
            rest = self.read(at + CENTRAL.size, names + extras)
            at += CENTRAL.size + names + extras + comments
            yield self.item(fields, rest[:names], rest[names:])

    def item(self, fields: tuple[int, ...], name: bytes, extra: bytes) -> Item:
        flags, method, clock, date, crc, packed, size = fields[3:10]
        attributes, offset = fields[15], fields[16]
        wide = iter(zip64_values(extra))
        try:
            size, packed, offset = [
                next(wide) if value == FULL else value for value in (size, packed, offset)
            ]
        except (StopIteration, RuntimeError):
            raise damaged("a size in it is missing.") from None
        if flags & 0x1:
            raise Refused("INVALID", "Encrypted archives cannot be unpacked.")
        if method not in (0, 8):
            raise Refused("INVALID", "The archive is compressed in a way that is not supported.")
        mode = attributes >> 16 if fields[1] >> 8 == UNIX else 0
        kind = stat.S_IFMT(mode)
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK):
            raise Refused("DENIED", "The archive holds a device or a named pipe.")

        def chunks() -> Iterator[bytes]:
            return self.content(offset, packed, size, crc, method)

        moment = unix_time(clock, date)
        if name.endswith(b"/") or kind == stat.S_IFDIR:
            return Item(IS_FOLDER, name, mode or 0o755, 0, moment, b"", no_chunks)
        if kind == stat.S_IFLNK:
            if size > MAX_NAME:
                raise damaged("a link in it is too long.")
            return Item(IS_SYMLINK, name, mode, 0, moment, b"".join(chunks()), no_chunks)
        return Item(IS_FILE, name, mode or 0o644, size, moment, b"", chunks)

    def content(self, at: int, left: int, size: int, crc: int, method: int) -> Iterator[bytes]:
        head = LOCAL.unpack(self.read(at, LOCAL.size))
        if head[0] != b"PK\x03\x04":
            raise damaged("an entry of it is not where it should be.")
        at += LOCAL.size + head[9] + head[10]
        stream = self.zlib.decompressobj(-15) if method == 8 else None
        done = found = 0
        raw = b""
        is_over = False
        while not is_over and done <= size:
            if not raw:
                raw = self.read(at, min(CHUNK, left))
                at += len(raw)
                left -= len(raw)
            data, is_over = raw, not left
            if stream is not None:
                try:
                    data = stream.decompress(raw, CHUNK)
                    is_over = not left and not stream.unconsumed_tail
                    data += stream.flush() if is_over else b""
                except self.zlib.error:
                    raise damaged("an entry of it cannot be read.") from None
            raw = stream.unconsumed_tail if stream is not None else b""
            done += len(data)
            found = self.zlib.crc32(data, found)
            yield data
        if done != size or found != crc:
            raise damaged("an entry of it is not what it should be.")


def zip64_values(extra: bytes) -> tuple[int, ...]:
    at = 0
    while at + 4 <= len(extra):
        kind, size = struct.unpack_from("<2H", extra, at)
        data = extra[at + 4 : at + 4 + size]
        if kind == 1:
            count = len(data) // 8
            return struct.unpack_from(f"<{count}Q", data)
        at += 4 + size
    return ()


def unix_time(clock: int, date: int) -> int:
    """Seconds since 1970, as if the archive's clock had shown UTC; 0 for no time."""
    year, month, day = (date >> 9) + 1980, date >> 5 & 15, date & 31
    if not 1 <= month <= 12 or not 1 <= day <= 31:
        return 0
    # Days of the civil calendar, counted from March so that leap days come last.
    years, months = (year - 1, month + 9) if month <= 2 else (year, month - 3)
    days = years * 365 + years // 4 - years // 100 + years // 400 + (153 * months + 2) // 5 + day
    seconds = (clock >> 11) * 3600 + (clock >> 5 & 63) * 60 + (clock & 31) * 2
    return (days - 719469) * 86400 + seconds
