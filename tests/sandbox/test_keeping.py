"""What an agent keeps of an execution, and what it says of its input, without a sandbox."""

import gc
import os
import weakref
from types import SimpleNamespace
from typing import Any, cast

import pytest

from sandbox.inside import wire
from sandbox.inside.core import Agent
from sandbox.inside.execution import Execution
from sandbox.inside.executions import Executions
from sandbox.inside.inputs import Input
from sandbox.inside.keeping import Kept
from sandbox.inside.outputs import Output


class Channel:
    """Takes so many frames of an agent, and notes them."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.frames: list[tuple[int, bytes]] = []
        self.watched: set[int] = set()

    def is_full(self) -> bool:
        return len(self.frames) >= self.room

    def send(self, kind: int, _: int, *parts: bytes) -> None:
        self.frames.append((kind, b"".join(parts)))

    def watch(self, fd: int, *_: Any) -> None:
        self.watched.add(fd)

    def unwatch(self, fd: int) -> None:
        self.watched.discard(fd)

    def close(self, fd: int) -> None:
        self.unwatch(fd)
        os.close(fd)


# What drops an execution of which nothing is left.
EXECUTIONS = SimpleNamespace(
    agent=SimpleNamespace(forget=lambda _: None), finish=lambda _: None, running={}, ended={}
)


@pytest.mark.parametrize("safe", [0, 1, wire.CHUNK, wire.CHUNK + 1, 3 * wire.CHUNK])
def test_what_is_safe_before_it_was_sent_is_not_sent(safe: int) -> None:
    channel = Channel(room=1)
    kept = Kept(cast("Agent", channel), 1)
    data = bytes(n % 251 for n in range(3 * wire.CHUNK))
    kept.add(0, data)
    assert channel.frames == [(wire.OUTPUT, b"\0" + data[: wire.CHUNK])]
    assert kept.acknowledge((safe, 0)) == safe
    channel.room = 100
    kept.send()
    rest = b"".join(body[1:] for _, body in channel.frames[1:])
    assert rest == data[max(safe, wire.CHUNK) :]
    assert kept.sent == [len(data), 0]


def test_the_input_of_what_was_dropped_says_nothing() -> None:
    channel = Channel(room=100)
    reading, writing = os.pipe()
    try:
        os.set_blocking(writing, False)
        given = Input(cast("Agent", channel), 1, writing, False)
        size = 1 << 20
        given.add(bytes(size))
        taken = len(os.read(reading, size))
        assert channel.frames == [(wire.STDIN_CREDIT, wire.AMOUNT.pack(taken))]
        assert channel.watched == {writing}
        dropped = SimpleNamespace(op=1, input=given, output=SimpleNamespace(), empty=True)
        Executions.drop(cast("Executions", EXECUTIONS), cast("Execution", dropped))
        given.feed(0)
        assert len(os.read(reading, size)) == taken
        given.close()
        given.add(b"more")
        assert len(channel.frames) == 1
    finally:
        os.close(reading)
        if given.fd >= 0:
            os.close(given.fd)


def test_an_output_that_is_closed_keeps_nobody_alive() -> None:
    class Owner:
        def __init__(self) -> None:
            channel = Channel(room=100)
            self.output = Output(cast("Agent", channel), 1, None, 0, 1, self.end, self.end)

        def end(self) -> None:
            raise AssertionError

    owner = Owner()
    known = weakref.ref(owner)
    gc.disable()
    try:
        owner.output.close()
        del owner
        assert known() is None
    finally:
        gc.enable()
