"""Asking ClamAV about a file by the INSTREAM command of its daemon, over TCP or a local socket."""

import asyncio
import gzip
import socket
import struct
from collections.abc import AsyncIterator
from functools import cache
from typing import Any
from urllib.parse import urlsplit

# Less than a daemon's shortest read timeout between two pieces.
_CONNECT_S = 5.0
_ANSWER_S = 120.0
# After so long without an answer it is asked whether it lives, again and again.
_QUIET_S = 5.0
_PONG_S = 10.0
_PIECE_BYTES = 128 * 1024
_ANSWER_BYTES = 4096
# No daemon can be told to look so deep into archives.
_DEPTH = 120
# What it calls a file that it did not look at as a whole, if it is told to say so.
_LIMITS = "Heuristics.Limits.Exceeded"


class ClamavError(Exception):
    """It does not answer, or not as it should; the text is for the log."""


class ClamavSilentError(ClamavError):
    """It takes connections and says nothing: whoever asks next waits as well."""


class ClamavLimitError(ClamavError):
    """It scans no file as large, as deep or as slow as this one."""


async def scan(url: str, chunks: AsyncIterator[bytes]) -> str | None:
    """Give the name of what it finds in these bytes; None when it finds nothing.

    `url` is `tcp://host:port` or `unix:///path`. Waits two minutes in all, and some 15 s for one
    that does not even answer a PING. Raises ClamavError.
    """
    try:
        async with asyncio.timeout(_ANSWER_S):
            with await _connect(url) as connection:
                return _verdict(await _ask(url, connection, chunks))
    except TimeoutError as error:
        raise ClamavSilentError("ClamAV did not answer in time") from error
    except (OSError, EOFError, ValueError) as error:
        raise ClamavError(f"ClamAV does not answer: {error!r}") from error


async def tells_limits(url: str) -> bool:
    """Tell whether it says of a file that it did not look at all of it (`AlertExceedsMax`).

    One that does not calls such a file clean. Raises ClamavError.
    """

    async def chunks() -> AsyncIterator[bytes]:
        yield too_deep()

    try:
        await scan(url, chunks())
    except ClamavLimitError:
        return True
    return False


@cache
def too_deep() -> bytes:
    """Give a file of some kilobytes that is beyond the limits of every daemon."""
    data = b"-"
    for _ in range(_DEPTH):
        data = gzip.compress(data, 0, mtime=0)
    return data


# Bare sockets: what one that hangs up has said before can be read of them still, though no more can
# be sent, which asyncio's streams forget.


async def _connect(url: str) -> socket.socket:
    place = urlsplit(url)
    async with asyncio.timeout(_CONNECT_S):
        if place.scheme == "unix":
            return await _opened(socket.AF_UNIX, place.path)
        loop = asyncio.get_running_loop()
        refused: OSError | None = None
        for family, _, _, _, address in await loop.getaddrinfo(
            place.hostname, place.port, type=socket.SOCK_STREAM
        ):
            try:
                return await _opened(family, address)
            except OSError as error:
                refused = error
        raise refused or OSError("the host has no address")


async def _opened(family: int, address: Any) -> socket.socket:
    connection = socket.socket(family, socket.SOCK_STREAM)
    try:
        connection.setblocking(False)
        await asyncio.get_running_loop().sock_connect(connection, address)
    except BaseException:
        connection.close()
        raise
    return connection


async def _ask(url: str, connection: socket.socket, chunks: AsyncIterator[bytes]) -> bytes:
    try:
        async with asyncio.TaskGroup() as group:
            others = [group.create_task(_send(connection, chunks)), group.create_task(_heed(url))]
            # Read from the beginning: one that has seen enough says why and hangs up at once.
            answer = await _answer(connection)
            for task in others:
                task.cancel()
            return answer
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None


async def _answer(connection: socket.socket) -> bytes:
    """Give what it says up to a zero byte, which the z of a command asks for."""
    data = b""
    while b"\0" not in data:
        part = await asyncio.get_running_loop().sock_recv(connection, _ANSWER_BYTES)
        if not part:
            raise EOFError("it hung up")
        data += part
        if len(data) > _ANSWER_BYTES:
            raise ClamavError("ClamAV answers without an end")
    return data


async def _send(connection: socket.socket, chunks: AsyncIterator[bytes]) -> None:
    send = asyncio.get_running_loop().sock_sendall
    try:
        await send(connection, b"zINSTREAM\0")
        async for chunk in chunks:
            for at in range(0, len(chunk), _PIECE_BYTES):
                piece = chunk[at : at + _PIECE_BYTES]
                await send(connection, struct.pack(">I", len(piece)) + piece)
        await send(connection, struct.pack(">I", 0))
    except ConnectionError:
        return  # Whoever reads the answer learns of it.


async def _heed(url: str) -> None:
    """Ask from time to time whether it lives. Raises TimeoutError, OSError or EOFError if not."""
    while True:
        await asyncio.sleep(_QUIET_S)
        async with asyncio.timeout(_PONG_S):
            with await _connect(url) as connection:
                await asyncio.get_running_loop().sock_sendall(connection, b"zPING\0")
                await _answer(connection)


def _verdict(answer: bytes) -> str | None:
    text = answer.partition(b"\0")[0].decode("utf-8", "replace").strip()
    if text == "stream: OK":
        return None
    if text.startswith("stream: ") and text.endswith(" FOUND"):
        name = text.removeprefix("stream: ").removesuffix(" FOUND")
        if name.startswith(_LIMITS):
            raise ClamavLimitError(text)
        return name
    if "size limit exceeded" in text:
        raise ClamavLimitError(text)
    raise ClamavError(f"ClamAV answered {text[:200]!r}")
