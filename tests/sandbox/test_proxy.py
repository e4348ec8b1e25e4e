"""The proxy of sandboxes: what it reaches, what it refuses, and what it never passes on."""

import asyncio
import ipaddress
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest

from sandbox import proxy as module
from sandbox.addresses import Address, is_own, is_special, parse_host, parse_ranges
from sandbox.bandwidth import Bandwidth
from sandbox.base import NetworkRule
from sandbox.errors import PortError
from sandbox.network_rules import NetworkRules, guarded
from sandbox.proxy import Connection, Proxy, Streams, Verdict

LOOPBACK = parse_ranges(["127.0.0.0/8"])
PUBLIC = "93.184.215.14"


class Program:
    """A connection of a program inside: the far end of what the proxy is given."""

    def __init__(self) -> None:
        self._sent: deque[bytes] = deque()
        self._more = asyncio.Event()
        self._is_ended = False
        self.received = bytearray()
        self._arrived = asyncio.Event()
        self.over = asyncio.Event()
        self.is_closed = False

    def send(self, data: bytes) -> None:
        self._sent.append(data)
        self._more.set()

    def finish(self) -> None:
        self._is_ended = True
        self._more.set()

    async def receive(self, until: bytes) -> bytes:
        """What came, once it has these bytes in it."""
        async with asyncio.timeout(30):
            while until not in self.received:
                self._arrived.clear()
                await self._arrived.wait()
        return bytes(self.received)

    async def answer(self) -> bytes:
        """All that came until the proxy closed the connection."""
        async with asyncio.timeout(30):
            await self.over.wait()
        return bytes(self.received)

    # What the proxy sees.

    async def read(self) -> bytes:
        while not self._sent:
            if self._is_ended or self.is_closed:
                return b""
            self._more.clear()
            await self._more.wait()
        return self._sent.popleft()

    async def write(self, data: bytes) -> None:
        if self.is_closed:
            raise PortError("The connection is closed.")
        self.received += data
        self._arrived.set()

    async def end(self) -> None:
        # Programs that have their answer go away.
        self.finish()

    async def aclose(self) -> None:
        self.is_closed = True
        self._more.set()
        self.over.set()


@dataclass
class World:
    """A proxy, the names there are, and where connections to addresses really go."""

    names: dict[str, list[str]] = field(default_factory=dict)
    to: dict[tuple[str, int], int] = field(default_factory=dict)
    own: set[str] = field(default_factory=set)
    asked: list[str] = field(default_factory=list)
    reached: list[tuple[str, int]] = field(default_factory=list)
    seen: list[Connection] = field(default_factory=list)
    proxies: list[Proxy] = field(default_factory=list)

    async def resolve(self, name: str) -> Sequence[Address]:
        self.asked.append(name)
        if name not in self.names:
            raise OSError("no such name")
        return [ipaddress.ip_address(text) for text in self.names[name]]

    async def connect(self, address: Address, port: int) -> Streams:
        self.reached.append((str(address), port))
        there = self.to.get((str(address), port))
        if there is None:
            raise ConnectionRefusedError
        return await asyncio.open_connection("127.0.0.1", there)

    def proxy(self, *rules: NetworkRule, private: Sequence[str] = (), **options: object) -> Proxy:
        made = Proxy(
            NetworkRules(rules, parse_ranges(private)),
            max_connections=int(str(options.pop("max_connections", 8))),
            bandwidth=options.pop("bandwidth", None),  # type: ignore[arg-type]
            on_change=self.seen.append,
            resolve=self.resolve,
            connect=self.connect,
            is_own=lambda address: str(address) in self.own,
        )
        self.proxies.append(made)
        return made


@pytest.fixture
async def world() -> AsyncIterator[World]:
    made = World()
    yield made
    for proxy in made.proxies:
        await proxy.aclose()


@asynccontextmanager
async def serving(
    handle: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
) -> AsyncIterator[int]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await handle(reader, writer)
        except (ConnectionError, EOFError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


@dataclass
class Web:
    """A web server that keeps what it is sent, and answers each connection once."""

    port: int = 0
    requests: list[bytes] = field(default_factory=list)
    arrived: asyncio.Event = field(default_factory=asyncio.Event)

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        self.requests.append(head)
        at = len(self.requests) - 1
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n")
        lower = head.lower()
        if b"chunked" in lower:
            self.requests[at] += await reader.readuntil(b"0\r\n\r\n")
        elif b"content-length: " in lower:
            count = int(lower.partition(b"content-length: ")[2].partition(b"\r\n")[0])
            self.requests[at] += await reader.readexactly(count)
        self.arrived.set()
        writer.write(b"ok")
        await writer.drain()
        writer.write_eof()
        # Whatever else comes was smuggled.
        self.requests[at] += await reader.read()


@pytest.fixture
async def web(world: World) -> AsyncIterator[Web]:
    """`example.org` and its subdomains, at a public address."""
    made = Web()
    async with serving(made.handle) as made.port:
        world.names |= {"example.org": [PUBLIC], "a.b.example.org": [PUBLIC]}
        world.to |= {(PUBLIC, 80): made.port, (PUBLIC, 443): made.port}
        yield made


def ask(proxy: Proxy, *parts: bytes) -> Program:
    program = Program()
    for part in parts:
        program.send(part)
    proxy.accept(program)
    return program


def status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


ORG = NetworkRule("example.org")


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


SPECIAL = [
    "127.0.0.1",
    "0.0.0.0",  # noqa: S104 - not bound to.
    "10.1.2.3",
    "172.16.0.1",
    "192.168.1.1",
    "169.254.169.254",
    "168.63.129.16",
    "100.64.0.1",
    "100.100.100.200",
    "192.0.0.192",
    "198.18.0.1",
    "224.0.0.1",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::ffff:127.0.0.1",
    "::ffff:169.254.169.254",
    f"::ffff:{PUBLIC}",
    "::127.0.0.1",
    "64:ff9b::7f00:1",
    "64:ff9b:1::7f00:1",
    "2002:7f00:1::",
    "2001:0:4136:e378:8000:63bf:80ff:fffe",
    "2001:db8::1",
    "fe80::1",
    "fd00:ec2::254",
    "fec0::1",
    "ff02::1",
    "100::1",
]


@pytest.mark.parametrize("text", SPECIAL)
async def test_special_addresses_are_denied_however_they_are_asked_for(
    world: World, text: str
) -> None:
    everything = (NetworkRule("0.0.0.0/0"), NetworkRule("::/0"), NetworkRule("inner.test"))
    world.names["inner.test"] = [text]
    # The operator lets all of them be named, but no rule names this one.
    proxy = world.proxy(*everything, private=["0.0.0.0/0", "::/0"])
    host = f"[{text}]" if ":" in text else text
    for target in (host, "inner.test"):
        program = ask(proxy, f"CONNECT {target}:443 HTTP/1.1\r\n\r\n".encode())
        assert status(await program.answer()) == 403
    # A rule names it, but the operator does not let it.
    proxy = world.proxy(*everything, NetworkRule(text))
    for target in (host, "inner.test"):
        program = ask(proxy, f"CONNECT {target}:443 HTTP/1.1\r\n\r\n".encode())
        assert status(await program.answer()) == 403
    assert world.reached == []
    assert [found.verdict for found in world.seen] == [Verdict.DENIED] * 4
    # Listed explicitly, by both.
    proxy = world.proxy(*everything, NetworkRule(text), private=[text])
    for target in (host, "inner.test"):
        program = ask(proxy, f"CONNECT {target}:443 HTTP/1.1\r\n\r\n".encode())
        assert status(await program.answer()) == 502
    assert world.reached == [(str(ipaddress.ip_address(text)), 443)] * 2


async def test_public_addresses_are_reached_by_ranges(world: World, web: Web) -> None:
    proxy = world.proxy(NetworkRule("93.184.0.0/16", (80,)))
    program = ask(proxy, f"GET http://{PUBLIC}/ HTTP/1.1\r\n\r\n".encode())
    assert status(await program.answer()) == 200
    for target in (f"{PUBLIC}:443", "93.185.0.1:80"):
        program = ask(proxy, f"CONNECT {target} HTTP/1.1\r\n\r\n".encode())
        assert status(await program.answer()) == 403
    assert world.reached == [(PUBLIC, 80)]


async def test_addresses_of_the_machine_itself_are_special(world: World, web: Web) -> None:
    world.own.add(PUBLIC)
    rules = (ORG, NetworkRule(f"{PUBLIC}/32"), NetworkRule("0.0.0.0/0"))
    for target in (b"example.org", PUBLIC.encode()):
        program = ask(world.proxy(*rules), b"GET http://%b/ HTTP/1.1\r\n\r\n" % target)
        assert status(await program.answer()) == 403
    assert world.reached == []
    program = ask(
        world.proxy(*rules, private=[f"{PUBLIC}/32"]), b"GET http://example.org/ HTTP/1.1\r\n\r\n"
    )
    assert status(await program.answer()) == 200


def test_a_machine_knows_its_own_addresses() -> None:
    assert is_own(ipaddress.ip_address("127.0.0.1"))
    assert not is_own(ipaddress.ip_address("192.0.2.1"))


@pytest.mark.parametrize(
    ("pattern", "allowed", "denied"),
    [
        ("example.org", ["example.org", "EXAMPLE.org", "example.org."], ["a.b.example.org"]),
        ("*.Example.org", ["a.b.example.org"], ["example.org", "badexample.org", ".example.org"]),
    ],
)
async def test_names_match_as_wholes(
    world: World, web: Web, pattern: str, allowed: list[str], denied: list[str]
) -> None:
    world.names |= {name: [PUBLIC] for name in denied}
    proxy = world.proxy(NetworkRule(pattern))
    for name in allowed:
        program = ask(proxy, f"GET http://{name}/ HTTP/1.1\r\n\r\n".encode())
        assert status(await program.answer()) == 200
    world.asked.clear()
    for name in denied:
        program = ask(proxy, f"GET http://{name}/ HTTP/1.1\r\n\r\n".encode())
        assert status(await program.answer()) in (400, 403)
    # Nobody was asked for a name that is not allowed: names carry data out as well.
    assert world.asked == []


async def test_a_port_that_no_rule_names_is_denied_and_recorded(world: World, web: Web) -> None:
    program = ask(world.proxy(ORG), b"CONNECT example.org:22 HTTP/1.1\r\n\r\n")
    assert status(await program.answer()) == 403
    (done,) = world.seen
    assert (done.host, done.port, done.verdict, done.rule) == (
        "example.org",
        22,
        Verdict.DENIED,
        None,
    )
    assert done.closed_at is not None
    assert world.asked == []


async def test_a_name_that_moves_is_reached_where_it_was_checked(world: World, web: Web) -> None:
    answers = [[PUBLIC], ["127.0.0.1"]]

    async def rebinding(name: str) -> Sequence[Address]:
        world.asked.append(name)
        return [ipaddress.ip_address(text) for text in answers.pop(0)]

    proxy = world.proxy(ORG)
    proxy._resolve = rebinding
    program = ask(proxy, b"GET http://example.org/ HTTP/1.1\r\n\r\n")
    assert status(await program.answer()) == 200
    # Asked once, and connected to what was checked; asked again, the new address is refused.
    assert world.asked == ["example.org"]
    assert world.reached == [(PUBLIC, 80)]
    program = ask(proxy, b"GET http://example.org/ HTTP/1.1\r\n\r\n")
    assert status(await program.answer()) == 403
    assert world.reached == [(PUBLIC, 80)]


async def test_of_several_addresses_only_allowed_ones_are_tried(world: World, web: Web) -> None:
    world.names["example.org"] = ["127.0.0.1", "93.184.215.99", "169.254.169.254", PUBLIC]
    program = ask(world.proxy(ORG), b"GET http://example.org/ HTTP/1.1\r\n\r\n")
    assert status(await program.answer()) == 200
    assert world.reached == [("93.184.215.99", 80), (PUBLIC, 80)]


async def test_hosts_that_do_not_answer_or_exist_are_recorded_as_failed(world: World) -> None:
    world.names["example.org"] = [PUBLIC]
    proxy = world.proxy(ORG, NetworkRule("missing.test"))
    for name in ("example.org", "missing.test"):
        program = ask(proxy, f"CONNECT {name}:443 HTTP/1.1\r\n\r\n".encode())
        assert status(await program.answer()) == 502
    assert [found.verdict for found in world.seen] == [Verdict.FAILED] * 2
    assert [found.address for found in world.seen] == [PUBLIC, None]


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


def test_hosts_are_read_in_one_way() -> None:
    assert parse_host("Example.ORG.") == "example.org"
    assert parse_host("1.2.3.4") == ipaddress.ip_address("1.2.3.4")
    assert parse_host("[2606:2800::1]") == ipaddress.ip_address("2606:2800::1")
    for text in ("", ".", "a..b", "-a.b", "a b", "1.2.3", "a.1", "[1.2.3.4]", "a" * 64, "ä.org"):
        with pytest.raises(ValueError, match=r"\w"):
            parse_host(text)


def test_public_addresses_are_not_special() -> None:
    for text in (PUBLIC, "1.1.1.1", "223.255.255.255", "2606:2800:220:1::1", "2a00::1"):
        assert not is_special(ipaddress.ip_address(text))
    for text in SPECIAL:
        assert is_special(ipaddress.ip_address(text))


def test_rules_that_name_what_the_operator_does_not_list_are_found() -> None:
    rules = [NetworkRule(host) for host in ("a.test", "10.0.0.0/24", "10.1.0.1", "8.8.8.8", "::1")]
    assert guarded(rules, []) == [rules[1], rules[2], rules[4]]
    assert guarded(rules, parse_ranges(["10.0.0.0/16"])) == [rules[2], rules[4]]
