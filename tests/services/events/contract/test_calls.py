"""Calls from node to node over every bus."""

import asyncio

import pytest

from services.errors import UserError, UserErrorCode
from services.events.base import Bus, BusUnavailableError, CallError, Json, NodeUnavailableError
from tests.services.events.conftest import MakeBus
from tests.services.events.patience import PATIENCE_S, patience


async def test_ping_and_nodes_answer(bus: Bus) -> None:
    await bus.ping()
    assert await bus.nodes() == {"node-a"}


async def test_nobody_had_reason_to_take_a_node_that_runs_for_dead(make_bus: MakeBus) -> None:
    time = asyncio.get_running_loop().time
    before = time()
    bus = await make_bus()
    since, started = bus.unbroken_since(), time()
    assert before <= since <= started
    await bus.append("t", {})
    assert bus.unbroken_since() == since
    await bus.aclose()
    closed = time()
    assert bus.unbroken_since() >= closed


async def test_a_call_to_this_node_runs_its_handler(bus: Bus) -> None:
    async def double(data: Json) -> Json:
        return {"n": data["n"] * 2}

    bus.serve("double", double)
    assert await bus.call("node-a", "double", {"n": 21}) == {"n": 42}


async def test_calls_run_concurrently(bus: Bus) -> None:
    everybody = asyncio.Barrier(10)

    async def meet(_: Json) -> Json:
        await everybody.wait()
        return {}

    bus.serve("meet", meet)
    async with patience():
        await asyncio.gather(*(bus.call("node-a", "meet", {}) for _ in range(10)))


async def test_a_refusal_of_the_handler_is_raised_with_its_code(bus: Bus) -> None:
    async def refuse(_: Json) -> Json:
        raise UserError(UserErrorCode.NOT_FOUND, "There is no such sandbox.")

    bus.serve("refuse", refuse)
    with pytest.raises(CallError) as refusal:
        await bus.call("node-a", "refuse", {})
    assert (refusal.value.code, refusal.value.message) == ("NOT_FOUND", "There is no such sandbox.")


async def test_a_bug_of_the_handler_is_masked_and_logged(
    bus: Bus, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(_: Json) -> Json:
        raise ZeroDivisionError("secret path")

    bus.serve("fail", fail)
    with pytest.raises(CallError) as refusal:
        await bus.call("node-a", "fail", {})
    assert refusal.value.code == "INTERNAL"
    assert "secret" not in refusal.value.message
    assert "ZeroDivisionError: secret path" in caplog.text


async def test_a_method_nobody_serves_is_refused(bus: Bus) -> None:
    with pytest.raises(CallError) as refusal:
        await bus.call("node-a", "nothing", {})
    assert refusal.value.code == "UNKNOWN_METHOD"


async def test_a_call_to_a_dead_node_fails(bus: Bus) -> None:
    with pytest.raises(NodeUnavailableError):
        await bus.call("nobody", "m", {}, timeout_s=PATIENCE_S)


async def test_a_call_given_up_goes_on_at_the_handler(bus: Bus) -> None:
    started, release, ended = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def slow(_: Json) -> Json:
        started.set()
        await release.wait()
        ended.set()
        return {}

    bus.serve("slow", slow)
    with pytest.raises(NodeUnavailableError):
        await bus.call("node-a", "slow", {}, timeout_s=0.01)
    cancelled = asyncio.ensure_future(bus.call("node-a", "slow", {}))
    await started.wait()
    cancelled.cancel()
    with pytest.raises(asyncio.CancelledError):
        await cancelled
    release.set()
    async with patience():
        await ended.wait()


async def test_closing_the_bus_cancels_its_handlers(bus: Bus) -> None:
    started, cancelled = asyncio.Event(), asyncio.Event()

    async def endless(_: Json) -> Json:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()
        return {}

    bus.serve("endless", endless)
    call = asyncio.ensure_future(bus.call("node-a", "endless", {}))
    await started.wait()
    await bus.aclose()
    assert cancelled.is_set()
    with pytest.raises(BusUnavailableError):
        await call
