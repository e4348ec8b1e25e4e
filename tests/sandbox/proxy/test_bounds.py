"""Rules that change, and how much passes the proxy."""

import asyncio
import ipaddress
from collections.abc import Sequence

from sandbox.addresses import Address
from sandbox.bandwidth import Bandwidth
from sandbox.network_rules import NetworkRules
from sandbox.policy import NetworkRule
from tests.sandbox.proxy.conftest import ORG, PUBLIC, Program, World, ask, serving, status


async def test_new_rules_hold_at_once_and_end_what_they_do_not_allow(world: World) -> None:
    gone = asyncio.Event()

    async def stay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"here")
        await reader.read()
        gone.set()

    async with serving(stay) as port:
        world.names |= {"one.test": [PUBLIC], "two.test": [PUBLIC]}
        world.to[PUBLIC, 443] = port
        proxy = world.proxy(NetworkRule("one.test"), NetworkRule("two.test"))
        one = ask(proxy, b"CONNECT one.test:443 HTTP/1.1\r\n\r\n")
        two = ask(proxy, b"CONNECT two.test:443 HTTP/1.1\r\n\r\n")
        await one.receive(b"here")
        await two.receive(b"here")
        proxy.replace(NetworkRules([NetworkRule("*.test", (443,)), NetworkRule("three.test")]))
        assert not one.is_closed
        proxy.replace(NetworkRules([NetworkRule("two.test")]))
        await one.answer()
        assert one.is_closed
        async with asyncio.timeout(30):
            await gone.wait()
        assert not two.is_closed
        again = ask(proxy, b"CONNECT one.test:443 HTTP/1.1\r\n\r\n")
        assert status(await again.answer()) == 403
        assert (world.seen[-2].host, world.seen[-2].closed_at is None) == ("one.test", False)
        proxy.replace(NetworkRules([]))
        await two.answer()
        assert two.is_closed


async def test_rules_that_change_while_a_name_is_resolved_hold_for_it(world: World) -> None:
    asked, go = asyncio.Event(), asyncio.Event()

    async def slow(name: str) -> Sequence[Address]:
        asked.set()
        await go.wait()
        return [ipaddress.ip_address(PUBLIC)]

    proxy = world.proxy(ORG)
    proxy._resolve = slow
    program = ask(proxy, b"CONNECT example.org:443 HTTP/1.1\r\n\r\n")
    async with asyncio.timeout(30):
        await asked.wait()
    proxy.replace(NetworkRules([]))
    go.set()
    assert status(await program.answer()) == 403
    assert world.reached == []


async def test_no_more_connections_are_open_than_may_be(world: World) -> None:
    async def stay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"here")
        await reader.read()

    async with serving(stay) as port:
        world.names["example.org"] = [PUBLIC]
        world.to[PUBLIC, 443] = port
        proxy = world.proxy(ORG, max_connections=2)
        held = [ask(proxy, b"CONNECT example.org:443 HTTP/1.1\r\n\r\n") for _ in range(2)]
        for program in held:
            await program.receive(b"here")
        more = ask(proxy, b"CONNECT example.org:443 HTTP/1.1\r\n\r\n")
        assert status(await more.answer()) == 503
        held[0].finish()
        await held[0].answer()
        while len(proxy) > 1:
            await asyncio.wait(proxy._tasks, return_when=asyncio.FIRST_COMPLETED)
        again = ask(proxy, b"CONNECT example.org:443 HTTP/1.1\r\n\r\n")
        await again.receive(b"here")
        await proxy.aclose()
        assert again.is_closed
        assert held[1].is_closed


async def test_a_reader_that_stalls_stalls_the_far_end(world: World) -> None:
    sent = 0
    blocked = asyncio.Event()

    async def flood(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        while True:
            writer.write(bytes(65536))
            try:
                async with asyncio.timeout(1):
                    await writer.drain()
            except TimeoutError:
                blocked.set()
                await writer.drain()
            sent += 65536

    class Stalled(Program):
        async def write(self, data: bytes) -> None:
            if data.startswith(b"HTTP"):
                return
            await asyncio.Event().wait()

    async with serving(flood) as port:
        world.names["example.org"] = [PUBLIC]
        world.to[PUBLIC, 443] = port
        program = Stalled()
        program.send(b"CONNECT example.org:443 HTTP/1.1\r\n\r\n")
        proxy = world.proxy(ORG)
        proxy.accept(program)
        async with asyncio.timeout(60):
            await blocked.wait()
        assert sent < 64 * 1024 * 1024
        await proxy.aclose()


async def test_bandwidth_is_shared_by_all_connections_and_changes_live() -> None:
    bandwidth = Bandwidth(1_000_000)
    await bandwidth.take(1_000_000)  # On credit: the next ones wait a second for it.
    loop = asyncio.get_running_loop()
    start = loop.time()
    await asyncio.gather(bandwidth.take(100_000), bandwidth.take(400_000), bandwidth.take(1))
    assert 0.9 < loop.time() - start < 20
    bandwidth.bytes_per_s = 1
    await bandwidth.take(1 << 20)
    waiting = asyncio.ensure_future(bandwidth.take(1))
    await asyncio.sleep(0)
    assert not waiting.done()
    bandwidth.bytes_per_s = None
    async with asyncio.timeout(30):
        await waiting
        await bandwidth.take(1 << 40)
