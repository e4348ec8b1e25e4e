"""Queries whose clients leave, or that take too long: what is cancelled, and by whom."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from starlette.types import Message

from app import graphql_body
from app.graphql_body import CancelOnDisconnect, ClientGoneError


@pytest.fixture(autouse=True)
def _without_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphql_body, "_DISCONNECT_PATIENCE_S", 0.0)


class Client:
    """A client that leaves when it is told to."""

    def __init__(self) -> None:
        self.has_left = asyncio.Event()
        self.is_watched = asyncio.Event()

    async def receive(self) -> Message:
        self.is_watched.set()
        await self.has_left.wait()
        return {"type": "http.disconnect"}


def _me() -> "asyncio.Task[object]":
    task = asyncio.current_task()
    assert task is not None
    return task


async def test_a_client_that_leaves_cancels_the_block() -> None:
    client = Client()
    client.has_left.set()
    with pytest.raises(ClientGoneError):
        async with CancelOnDisconnect(client.receive, 60):
            await asyncio.Event().wait()
    assert _me().cancelling() == 0
    # The task is as good as new.
    await asyncio.sleep(0)


async def test_a_block_that_takes_too_long_is_cancelled() -> None:
    client = Client()
    with pytest.raises(TimeoutError):
        async with CancelOnDisconnect(client.receive, 0.01):
            await asyncio.Event().wait()
    assert _me().cancelling() == 0
    await asyncio.sleep(0)


async def test_a_block_without_a_limit_goes_on() -> None:
    client = Client()
    async with CancelOnDisconnect(client.receive):
        await client.is_watched.wait()
    assert _me().cancelling() == 0


async def test_a_quick_block_is_not_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphql_body, "_DISCONNECT_PATIENCE_S", 60.0)
    client = Client()
    client.has_left.set()
    async with CancelOnDisconnect(client.receive, 60):
        await asyncio.sleep(0)
    assert not client.is_watched.is_set()


async def test_what_somebody_else_cancels_stays_cancelled() -> None:
    client = Client()
    running = asyncio.Event()

    async def work() -> None:
        async with CancelOnDisconnect(client.receive, 60):
            running.set()
            await asyncio.Event().wait()

    alone = asyncio.create_task(work())
    await running.wait()
    await client.is_watched.wait()
    alone.cancel()
    with pytest.raises(asyncio.CancelledError):
        await alone
    # And when the client leaves at the same time.
    client, running = Client(), asyncio.Event()
    both = asyncio.create_task(work())
    await running.wait()
    await client.is_watched.wait()
    client.has_left.set()
    while both.cancelling() == 0:  # noqa: ASYNC110 - it tells nobody.
        await asyncio.sleep(0)
    both.cancel()
    with pytest.raises(asyncio.CancelledError):
        await both


async def _finished(_client: Client) -> None:
    """End as if nothing had been."""


async def _failed(_client: Client) -> None:
    raise ValueError("its own")


@pytest.mark.parametrize("end", [_finished, _failed])
async def test_a_block_that_ends_by_itself_ends_so(
    end: Callable[[Client], Awaitable[None]],
) -> None:
    client = Client()
    client.has_left.set()
    try:
        async with CancelOnDisconnect(client.receive, 60):
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                await end(client)
    except ValueError as error:
        assert (end, str(error)) == (_failed, "its own")  # noqa: PT017 - one of two ways.
    assert _me().cancelling() == 0
    await asyncio.sleep(0)


async def test_a_client_that_leaves_after_the_block_cancels_nothing() -> None:
    client = Client()

    async def receive() -> Message:
        client.is_watched.set()
        try:
            await client.has_left.wait()
        except asyncio.CancelledError:
            # It leaves just as nobody cares any more.
            return {"type": "http.disconnect"}
        raise AssertionError("it never leaves before")

    async with CancelOnDisconnect(receive, 60):
        await client.is_watched.wait()
    assert _me().cancelling() == 0
    await asyncio.sleep(0)
