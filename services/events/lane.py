"""One Redis connection for commands; those that wait at a time share a round trip."""

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import (
    NoPermissionError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)

from services.events.base import BusUnavailableError
from services.events.scripts import Argument
from services.events.wire import Wire, pack

_log = logging.getLogger(__name__)

_BATCH_COMMANDS = 128
_WAITING_COMMANDS = 20_000


class RunId:
    """Stands in a command for the run id of the server that this very connection reaches."""


RUN_ID = RunId()


class _Command:
    __slots__ = ("arguments", "future")

    def __init__(self, arguments: list[bytes | RunId], future: asyncio.Future[Any]) -> None:
        self.arguments = arguments
        self.future = future

    def pack(self, run_id: bytes) -> bytes:
        return pack(*[run_id if isinstance(a, RunId) else a for a in self.arguments])


class Lane:
    """Sends commands in the order they come, many in one round trip, and never sends one twice.

    A command waits at most `timeout_s` seconds, for the connection and the answer together; then,
    and whenever the connection fails, it raises BusUnavailableError and may have been executed or
    not. At most 20,000 commands wait; more are refused at once. The lane connects when there is
    something to send, so that it is well again as soon as Redis is.
    """

    def __init__(self, make: Callable[[], Wire], *, timeout_s: float) -> None:
        self._make = make
        self._timeout_s = timeout_s
        self._wire: Wire | None = None
        self._run_id = b""
        self._waiting: list[_Command] = []
        self._awake = asyncio.Event()
        self._is_closed = False

    async def execute(self, *arguments: Argument | RunId) -> Any:
        """Give Redis's answer to a command.

        Raises ResponseError if Redis refused it. Cancelled, it may have been executed or not.
        """
        if self._is_closed:
            raise BusUnavailableError("The bus is closed.")
        if len(self._waiting) >= _WAITING_COMMANDS:
            raise BusUnavailableError("Too many commands wait for Redis.")
        command = _Command(
            [a if isinstance(a, RunId) else _bytes(a) for a in arguments],
            asyncio.get_running_loop().create_future(),
        )
        self._waiting.append(command)
        self._awake.set()
        try:
            async with asyncio.timeout(self._timeout_s):
                return await command.future
        except TimeoutError as error:
            raise BusUnavailableError(f"Redis did not answer in {self._timeout_s:g} s.") from error

    async def run(self) -> None:
        """Serve until cancelled; then fail what waits and close the connection."""
        try:
            while True:
                await self._awake.wait()
                batch, self._waiting = (
                    self._waiting[:_BATCH_COMMANDS],
                    self._waiting[_BATCH_COMMANDS:],
                )
                if not self._waiting:
                    self._awake.clear()
                batch = [command for command in batch if not command.future.done()]
                if batch:
                    await self._serve(batch)
        finally:
            self._is_closed = True
            _fail(self._waiting, "The bus is closed.")
            await self._disconnect()

    async def _serve(self, batch: list[_Command]) -> None:
        try:
            async with asyncio.timeout(self._timeout_s):
                wire = await self._connected()
                await wire.send(b"".join([command.pack(self._run_id) for command in batch]))
                is_demoted = await _receive(wire, batch)
            if is_demoted:
                # The name may lead to the new master by now.
                await self._disconnect()
        except (RedisError, OSError, TimeoutError) as error:
            _fail(batch, f"Redis is unavailable: {error or 'no answer in time'}")
            await self._disconnect()
        except BaseException as error:
            # Answers still under way would be taken for those of later commands.
            _fail(batch, "The command to Redis was interrupted.")
            await self._disconnect()
            if not isinstance(error, Exception):
                raise
            # A process outlives whatever one connection did.
            _log.exception("The commands to Redis broke unexpectedly")

    async def _connected(self) -> Wire:
        if self._wire is not None:
            # Between commands the server has nothing to say: bytes or an end mean it is dead.
            if await self._wire.is_quiet():
                return self._wire
            await self._disconnect()
        wire = self._wire = self._make()
        await wire.open()
        await wire.send(pack(b"INFO", b"server"))
        (reply,) = await wire.receive()
        if isinstance(reply, NoPermissionError):
            self._run_id = b""
        elif isinstance(reply, RedisError):
            raise reply
        else:
            self._run_id = _run_id(reply)
        return wire

    async def _disconnect(self) -> None:
        wire, self._wire = self._wire, None
        if wire is not None:
            await wire.close()


async def _receive(wire: Wire, batch: list[_Command]) -> bool:
    """Answer a batch that was sent; gives whether the server turned out to be no master."""
    is_demoted = False
    unanswered = iter(batch)
    count = 0
    while count < len(batch):
        replies = await wire.receive()
        count += len(replies)
        if count > len(batch):
            raise RedisConnectionError("Redis gave more answers than it was asked.")
        for reply in replies:
            if isinstance(reply, RedisError) and not isinstance(reply, ResponseError):
                # Not an answer to the command: the server loads its data, or lets nobody in.
                raise reply
            is_demoted = is_demoted or isinstance(reply, ReadOnlyError)
            _answer(next(unanswered), reply)
    return is_demoted


def _run_id(info: bytes) -> bytes:
    """Give the `run_id` that INFO names; '' if it names none."""
    for line in info.splitlines():
        name, _, value = line.partition(b":")
        if name == b"run_id":
            return value.strip()
    return b""


def _bytes(argument: Argument) -> bytes:
    # Encoded where the command is given, so that what cannot be encoded fails its caller alone.
    return argument if isinstance(argument, bytes) else str(argument).encode()


def _answer(command: _Command, reply: Any) -> None:
    if command.future.done():
        return
    if isinstance(reply, ResponseError):
        command.future.set_exception(reply)
    else:
        command.future.set_result(reply)


def _fail(batch: list[_Command], message: str) -> None:
    for command in batch:
        if not command.future.done():
            command.future.set_exception(BusUnavailableError(message))
