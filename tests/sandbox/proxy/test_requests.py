"""What the proxy passes on, and what it refuses to understand."""

import asyncio

import pytest

from sandbox import proxy as module
from sandbox.policy import NetworkRule
from sandbox.proxy import Verdict
from tests.sandbox.proxy.conftest import ORG, PUBLIC, Web, World, ask, serving, status


async def test_a_request_goes_to_the_host_that_a_rule_names(world: World, web: Web) -> None:
    program = ask(
        world.proxy(ORG),
        b"GET http://example.org/a?b=c#d HTTP/1.1\r\nHost: other.test\r\nAccept: x\r\n"
        b"Proxy-Authorization: secret\r\nConnection: x-mine, keep-alive\r\nX-Mine: 1\r\n\r\n",
    )
    answer = await program.answer()
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert answer.endswith(b"\r\n\r\nok")
    assert web.requests == [
        b"GET /a?b=c HTTP/1.1\r\nHost: example.org\r\naccept: x\r\nConnection: close\r\n\r\n"
    ]
    done = world.seen[-1]
    assert (done.host, done.address, done.port) == ("example.org", PUBLIC, 80)
    assert (done.verdict, done.rule) == (Verdict.ALLOWED, "example.org")
    assert done.bytes_in == len(answer)
    assert done.closed_at is not None
    assert done.closed_at >= done.opened_at


async def test_connect_carries_bytes_both_ways_and_each_end(world: World) -> None:
    async def count(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"hello ")
        writer.write(b"%d" % len(await reader.read()))
        await writer.drain()

    async with serving(count) as port:
        world.names["example.org"] = [PUBLIC]
        world.to[PUBLIC, 443] = port
        program = ask(world.proxy(ORG), b"CONNECT example.org:443 HTTP/1.1\r\n\r\nearly")
        await program.receive(b"hello ")
        program.send(bytes(300_000))
        program.finish()
        answer = await program.answer()
    assert answer == b"HTTP/1.1 200 Connection established\r\n\r\nhello 300005"
    done = world.seen[-1]
    assert (done.bytes_out, done.bytes_in) == (300_005, len(b"hello 300005"))
    # Told when it opened, and when it closed.
    assert len(world.seen) == 2


async def test_bodies_are_passed_on_and_nothing_behind_them(world: World, web: Web) -> None:
    smuggled = b"GET http://example.org/second HTTP/1.1\r\nHost: example.org\r\n\r\n"
    proxy = world.proxy(ORG)
    program = ask(
        proxy,
        b"POST http://example.org/ HTTP/1.1\r\nContent-Length: 5\r\n\r\nhe",
        b"llo" + smuggled,
    )
    assert status(await program.answer()) == 200
    program = ask(
        proxy,
        b"POST http://example.org/ HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5;x=y\r\nhel",
        b"lo\r",
        b"\n0\r\nX-Trailer: 1\r\n\r\n" + smuggled,
    )
    assert status(await program.answer()) == 200
    assert [request.partition(b"\r\n\r\n")[2] for request in web.requests] == [
        b"hello",
        b"5\r\nhello\r\n0\r\n\r\n",
    ]
    assert not any(b"second" in request for request in web.requests)


@pytest.mark.parametrize(
    "head",
    [
        b"POST http://example.org/ HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        b"POST http://example.org/ HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\na",
        b"POST http://example.org/ HTTP/1.1\r\nContent-Length: 1, 1\r\n\r\na",
        b"POST http://example.org/ HTTP/1.1\r\nContent-Length: +1\r\n\r\na",
        b"POST http://example.org/ HTTP/1.1\r\nContent-Length: 0x1\r\n\r\na",
        b"POST http://example.org/ HTTP/1.1\r\nContent-Length: 1\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST http://example.org/ HTTP/1.1\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        b"POST http://example.org/ HTTP/1.1\r\nTransfer-Encoding: chunked, identity\r\n\r\n",
        b"POST http://example.org/ HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST http://example.org/ HTTP/1.1\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
        b"POST http://example.org/ HTTP/1.1\r\nTransfer-Encoding:\x0bchunked\r\n\r\n0\r\n\r\n",
        b"GET http://example.org/ HTTP/1.1\r\nA: b\nHost: evil.test\r\n\r\n",
        b"GET http://example.org/ HTTP/1.1\r\nA: b\rHost: evil.test\r\n\r\n",
        b"GET http://example.org/ HTTP/1.1\r\nA: b\r\n folded: c\r\n\r\n",
        b"GET http://example.org/ HTTP/1.1\r\nA: b\0c\r\n\r\n",
        b"GET http://example.org/ HTTP/1.1\r\n: b\r\n\r\n",
        b"GET http://example.org/\tx HTTP/1.1\r\n\r\n",
        b"GET http://example.org/ x HTTP/1.1\r\n\r\n",
        b"GET http://example.org/ HTTP/2.0\r\n\r\n",
        b"GET /origin-form HTTP/1.1\r\nHost: example.org\r\n\r\n",
        b"GET ftp://example.org/ HTTP/1.1\r\n\r\n",
        b"GET https://example.org/ HTTP/1.1\r\n\r\n",
        b"GET http://user@example.org/ HTTP/1.1\r\n\r\n",
        b"GET http://example.org@127.0.0.1/ HTTP/1.1\r\n\r\n",
        b"GET http://example.org:80:81/ HTTP/1.1\r\n\r\n",
        b"GET http://example.org\\@evil.test/ HTTP/1.1\r\n\r\n",
        b"GET http:///x HTTP/1.1\r\n\r\n",
        b"CONNECT user:password@example.org:443 HTTP/1.1\r\n\r\n",
        b"CONNECT example.org@127.0.0.1:443 HTTP/1.1\r\n\r\n",
        b"CONNECT example.org HTTP/1.1\r\n\r\n",
        b"CONNECT example.org:0 HTTP/1.1\r\n\r\n",
        b"CONNECT example.org:65536 HTTP/1.1\r\n\r\n",
        b"CONNECT example.org:+443 HTTP/1.1\r\n\r\n",
        b"CONNECT example.org:443/x HTTP/1.1\r\n\r\n",
        b"CONNECT example.org%00.evil.test:443 HTTP/1.1\r\n\r\n",
        b"CONNECT ex\xc3\xa4mple.org:443 HTTP/1.1\r\n\r\n",
        b"CONNECT example.org:443 HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc",
        b"\x16\x03\x01\x02\x00\x01\r\n\r\n",
        b"\r\n\r\n",
    ],
)
async def test_what_could_be_understood_in_two_ways_is_refused(
    world: World, web: Web, head: bytes
) -> None:
    program = ask(world.proxy(ORG, NetworkRule("127.0.0.1")), head)
    assert status(await program.answer()) == 400
    assert world.reached == []
    assert web.requests == []


@pytest.mark.parametrize(
    "host",
    [
        "2130706433",
        "0x7f000001",
        "0x7f.0.0.1",
        "0177.0.0.1",
        "127.1",
        "127.0.0.01",
        "127.0.0.1.",
        "017700000001",
        "[::1%25lo]",
        "[127.0.0.1]",
        "::1",
    ],
)
async def test_other_ways_to_write_an_address_are_no_hosts(world: World, host: str) -> None:
    # Even where that very name, or the address it stands for, is allowed.
    proxy = world.proxy(NetworkRule("127.0.0.1"), private=["127.0.0.0/8"])
    program = ask(proxy, f"CONNECT {host}:80 HTTP/1.1\r\n\r\n".encode())
    assert status(await program.answer()) == 400
    assert not world.reached
    assert not world.asked


async def test_heads_that_are_huge_or_slow_are_refused(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy = world.proxy(ORG)
    program = ask(proxy, b"GET http://example.org/ HTTP/1.1\r\n", b"A: b\r\n" * 20_000)
    assert status(await program.answer()) == 431
    program = ask(proxy, b"GET http://example.org/" + b"a" * 20_000 + b" HTTP/1.1\r\n\r\n")
    assert status(await program.answer()) == 400
    monkeypatch.setattr(module, "HEAD_S", 0.05)
    program = ask(proxy, b"GET http://exam")
    assert status(await program.answer()) == 408
    assert world.reached == []


async def test_malformed_chunks_are_not_passed_on(world: World, web: Web) -> None:
    head = b"POST http://example.org/ HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"
    for chunks in (
        b"0x1\r\na\r\n0\r\n\r\n",
        b"1\r\nab\r\n0\r\n\r\n",
        b"-1\r\n\r\n",
        b"1\n\na\n0\r\n\r\n",
    ):
        program = ask(world.proxy(ORG), head + chunks)
        answer = await program.answer()
        assert b"\r\n\r\nok" not in answer
    assert not any(request.endswith(b"0\r\n\r\n") for request in web.requests)
