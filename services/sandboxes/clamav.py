"""Asking ClamAV about a file by the INSTREAM command of its daemon, over TCP or a local socket."""

import asyncio
import struct
from collections.abc import AsyncIterator
from urllib.parse import urlsplit

# Less than a daemon's shortest read timeout between two pieces.
_CONNECT_S = 5.0
_ANSWER_S = 120.0
_PIECE_BYTES = 128 * 1024
_ANSWER_BYTES = 4096


class ClamavError(Exception):
    """It does not answer, or not as it should; the text is for the log."""


class ClamavLimitError(ClamavError):
    """It scans no file as large as this one."""


async def scan(url: str, chunks: AsyncIterator[bytes]) -> str | None:
    """Give the name of what it finds in these bytes; None when it finds nothing.

    `url` is `tcp://host:port` or `unix:///path`. Waits two minutes in all. Raises ClamavError.
    """
    try:
        async with asyncio.timeout(_ANSWER_S):
            reader, writer = await _connect(url)
            try:
                return _verdict(await _ask(reader, writer, chunks))
            finally:
                await _close(writer)
    except TimeoutError as error:
        raise ClamavError("ClamAV did not answer in time") from error
    except (OSError, EOFError, ValueError) as error:
        raise ClamavError(f"ClamAV does not answer: {error!r}") from error


async def _connect(url: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    place = urlsplit(url)
    async with asyncio.timeout(_CONNECT_S):
        if place.scheme == "unix":
            return await asyncio.open_unix_connection(place.path)
        return await asyncio.open_connection(place.hostname, place.port)


async def _close(writer: asyncio.StreamWriter) -> None:
    writer.transport.abort()
    try:
        await writer.wait_closed()
    except OSError:
        return


async def _ask(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, chunks: AsyncIterator[bytes]
) -> bytes:
    # Read from the beginning: one that has seen enough says why and hangs up at once, which
    # takes away what was not read by then.
    async with asyncio.TaskGroup() as group:
        answer = group.create_task(_answer(reader))
        sending = group.create_task(_send(writer, chunks))
        await asyncio.wait({answer, sending}, return_when=asyncio.FIRST_COMPLETED)
        if answer.done() and not answer.cancelled():
            sending.cancel()
    if isinstance(result := answer.result(), BaseException):
        raise result
    return result


async def _answer(reader: asyncio.StreamReader) -> bytes | OSError | EOFError:
    try:
        # With a zero byte at its end, which the z of the command asks for.
        return await reader.readuntil(b"\0")
    except (OSError, EOFError) as error:
        return error


async def _send(writer: asyncio.StreamWriter, chunks: AsyncIterator[bytes]) -> None:
    try:
        writer.write(b"zINSTREAM\0")
        async for chunk in chunks:
            for at in range(0, len(chunk), _PIECE_BYTES):
                piece = chunk[at : at + _PIECE_BYTES]
                writer.write(struct.pack(">I", len(piece)) + piece)
                await writer.drain()
        writer.write(struct.pack(">I", 0))
        await writer.drain()
    except ConnectionError:
        return  # Whoever reads the answer learns of it.


def _verdict(answer: bytes) -> str | None:
    text = answer.rstrip(b"\0").decode("utf-8", "replace").strip()
    if text == "stream: OK":
        return None
    if text.startswith("stream: ") and text.endswith(" FOUND"):
        return text.removeprefix("stream: ").removesuffix(" FOUND")
    if "size limit exceeded" in text:
        raise ClamavLimitError(text)
    raise ClamavError(f"ClamAV answered {text[:200]!r}")
