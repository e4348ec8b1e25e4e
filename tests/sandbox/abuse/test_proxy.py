"""Code inside that means to get past the proxy, over the real way out of a real sandbox."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from sandbox.policy import NetworkRule
from sandbox.proxy import Proxy
from sandbox.tunnels import Listener
from tests.sandbox.abuse.attack import tries
from tests.sandbox.abuse.conftest import Site
from tests.sandbox.proxy.conftest import ORG, PUBLIC, World, serving

pytestmark = pytest.mark.asyncio(loop_scope="module")

SECRET = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\nConnection: close\r\n\r\nSECRET"
DENIED = [
    "169.254.169.254",
    "127.0.0.1",
    "10.0.0.1",
    "::1",
    "::ffff:127.0.0.1",
    "fe80::1",
    "100.64.0.1",
    "0.0.0.0",  # noqa: S104 - a place to get to.
]


class Way:
    """A proxy that a sandbox reaches at `port`; any address answers, so only rules keep out."""

    def __init__(self) -> None:
        self.world = World()
        self.port = 0
        self.requests: list[bytes] = []

    async def handle(self, reader, writer) -> None:  # type: ignore[no-untyped-def]
        self.requests.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(SECRET)
        await writer.drain()


@pytest_asyncio.fixture(loop_scope="module")
async def way(site: Site) -> AsyncIterator[Way]:
    made = Way()
    async with serving(made.handle) as port:
        world = made.world
        for address in (PUBLIC, *DENIED):
            world.to |= {(address, number): port for number in (22, 80, 443, 8080)}
        world.names = {"example.org": [PUBLIC], "inside.example.org": ["10.0.0.1"],
                       "both.example.org": [PUBLIC, "127.0.0.1"]}  # fmt: skip
        rules = (ORG, NetworkRule("*.example.org"), NetworkRule("0.0.0.0/0", (80,)),
                 NetworkRule("::/0", (80,)))  # fmt: skip
        proxy: Proxy = world.proxy(*rules)
        listener: Listener = await site.box.client.listen()
        site.box.client.on_accepted = proxy.accept
        made.port = listener.port
        try:
            yield made
        finally:
            await listener.aclose()
            await proxy.aclose()


SEND = """
answer = b''
try:
    link = socket.create_connection(('127.0.0.1', {port}), timeout=20)
    link.sendall(open('/workspace/sent', 'rb').read())
    link.shutdown(socket.SHUT_WR)
    while data := link.recv(65536):
        answer += data
except OSError:
    pass
print('SECRET' if b'SECRET' in answer else 'refused', answer[9:12].decode() or 'closed')
"""


async def send(site: Site, way: Way, sent: bytes) -> list[str]:
    """What a program inside is answered when it sends these bytes to the proxy."""
    await site.box.client.files.write("sent", sent)
    return await tries(site.box, SEND.format(port=way.port))


def get(url: str, host: str = "example.org", more: str = "") -> bytes:
    return f"GET {url} HTTP/1.1\r\nHost: {host}\r\n{more}\r\n".encode()


def dial(target: str, host: str = "example.org") -> bytes:
    return f"CONNECT {target} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode() + get("/")


ESCAPES: dict[str, bytes] = {
    "the metadata address": get("http://169.254.169.254/latest/meta-data/"),
    "the loopback": get("http://127.0.0.1/"),
    "the loopback, short": get("http://127.1/"),
    "the loopback, as one number": get("http://2130706433/"),
    "the loopback, in octal": get("http://0177.0.0.1/"),
    "the loopback, in hexadecimal": get("http://0x7f000001/"),
    "the loopback, with dots in hexadecimal": get("http://0x7f.0x0.0x0.0x1/"),
    "the loopback, of version 6": get("http://[::1]/"),
    "the loopback, mapped": get("http://[::ffff:127.0.0.1]/"),
    "the loopback, mapped in hexadecimal": get("http://[::ffff:7f00:1]/"),
    "the loopback, translated": get("http://[64:ff9b::7f00:1]/"),
    "the loopback, compatible": get("http://[::127.0.0.1]/"),
    "the loopback, by 6to4": get("http://[2002:7f00:1::]/"),
    "the loopback with a zone": get("http://[fe80::1%25lo]/"),
    "the loopback in digits that are odd": get("http://\u246027.0.0.1/"),
    "no address at all": get("http://0.0.0.0/"),
    "no address, as a number": get("http://0/"),
    "a private range": get("http://10.0.0.1/"),
    "a carrier's range": get("http://100.64.0.1/"),
    "the broadcast": get("http://255.255.255.255/"),
    "localhost": get("http://localhost/"),
    "localhost with a dot": get("http://localhost./"),
    "a name that leads inside": get("http://inside.example.org/"),
    "a user before the host": get("http://example.org@127.0.0.1/"),
    "a user that looks like a host": get("http://example.org:80@169.254.169.254/"),
    "a user behind a fragment": get("http://127.0.0.1#@example.org/"),
    "a slash turned round": get("http://127.0.0.1\\@example.org/"),
    "a name with a NUL": get("http://example.org\0.evil.test/"),
    "a name that is a longer one": get("http://notexample.org/"),
    "a name that goes on": get("http://example.org.evil.test/"),
    "a port that is denied": get("http://example.org:22/"),
    "a port beyond all": get("http://example.org:65616/"),
    "a port below all": get("http://example.org:-1/"),
    "another scheme": get("file:///etc/passwd"),
    "a scheme of old": get("gopher://127.0.0.1:80/_x"),
    "connect to the loopback": dial("127.0.0.1:80"),
    "connect to metadata": dial("169.254.169.254:80"),
    "connect to a denied port": dial("example.org:22"),
    "connect to another denied port": dial("example.org:8080"),
    "connect to a mapped address": dial("[::ffff:169.254.169.254]:80"),
    "connect to one number": dial("2852039166:80"),
    "connect without a port": dial("example.org"),
    "connect with a path": dial("example.org:443/../../127.0.0.1:80"),
    "connect with a user": dial("example.org:443@127.0.0.1:80"),
    "a host of another kind than the address": get("/", "169.254.169.254"),
    "a relative address": get("//169.254.169.254/"),
    "two lengths": get("http://example.org/", more="Content-Length: 5\r\nContent-Length: 50\r\n"),
    "a length and pieces": get("http://example.org/",
                               more="Content-Length: 5\r\nTransfer-Encoding: chunked\r\n"),
    "pieces under another name": get("http://example.org/", more="Transfer-Encoding: xchunked\r\n"),
    "pieces with a space before the colon": get("http://example.org/",
                                                more="Transfer-Encoding : chunked\r\n"),
    "a line folded": get("http://example.org/", more="X: a\r\n b: c\r\n"),
    "a bare line feed": b"GET http://example.org/ HTTP/1.1\nHost: example.org\n\n",
    "a carriage return alone": get("http://example.org/", more="X: a\rY: b\r\n"),
    "a head of a megabyte": get("http://example.org/", more=f"X: {'x' * (1 << 20)}\r\n"),
    "ten thousand fields": get("http://example.org/", more="X: y\r\n" * 10_000),
    "nonsense": bytes(range(256)) * 20,
    "a greeting of TLS": bytes.fromhex("160301020001000001fc0303") + bytes(500),
    "a greeting of SOCKS": b"\x05\x01\x00\x05\x01\x00\x01\x7f\x00\x00\x01\x00\x50",
    "a preface of HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(100),
}  # fmt: skip


@pytest.mark.parametrize("sent", ESCAPES.values(), ids=ESCAPES.keys())
async def test_what_no_rule_allows_is_not_reached(site: Site, way: Way, sent: bytes) -> None:
    got = await send(site, way, sent)
    assert got[0] == "refused", got
    assert way.requests == []
    assert {address for address, _ in way.world.reached} <= {PUBLIC}


async def test_what_a_rule_allows_is_reached(site: Site, way: Way) -> None:
    # Were everything refused, the refusals above would prove nothing.
    for sent in (get("http://example.org/"), dial("example.org:443"), get(f"http://{PUBLIC}/"),
                 get("http://EXAMPLE.ORG/"), get("http://both.example.org/")):  # fmt: skip
        got = await send(site, way, sent)
        assert got[0] == "SECRET", (sent, got)
    assert {address for address, _ in way.world.reached} == {PUBLIC}


async def test_a_request_behind_another_is_not_passed_on(site: Site, way: Way) -> None:
    smuggled = get("http://example.org/first") + get("http://169.254.169.254/second")
    await send(site, way, smuggled)
    assert len(way.requests) <= 1
    assert not [request for request in way.requests if b"second" in request]


async def test_a_name_that_moves_between_check_and_use(site: Site, way: Way) -> None:
    answers = iter([[PUBLIC], ["127.0.0.1"], ["169.254.169.254"], [PUBLIC]])

    async def rebinding(name: str):  # type: ignore[no-untyped-def]
        way.world.names[name] = next(answers)
        return await World.resolve(way.world, name)

    way.world.proxies[0]._resolve = rebinding
    for _ in range(4):
        await send(site, way, get("http://example.org/"))
    assert {address for address, _ in way.world.reached} == {PUBLIC}
    assert len(way.world.reached) == 2


SLOW = """
links = []
for _ in range(100):
    try:
        links.append(socket.create_connection(('127.0.0.1', {port}), timeout=20))
        links[-1].sendall(b'GET http://example.org/ HTTP/1.1\\r\\nX: ')
    except OSError:
        break
print('held')
"""


async def test_heads_that_never_end_hold_no_others_up(site: Site, way: Way) -> None:
    assert await tries(site.box, SLOW.format(port=way.port)) == ["held"]
    # They went with their program, and what follows is served.
    got = ["refused"]
    for _ in range(20):
        got = await send(site, way, get("http://example.org/"))
        if got[0] == "SECRET":
            break
    assert got[0] == "SECRET"
