"""Networks: no unusual socket is made, and no address of this machine or another is reached."""

import asyncio
import contextlib
import socket
import subprocess
import uuid
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.sandbox.abuse.attack import Attempt, attempts, is_contained, tries
from tests.sandbox.abuse.conftest import Site
from tests.sandbox.conftest import Box

pytestmark = pytest.mark.asyncio(loop_scope="module")


@attempts(
    *(
        Attempt(f"{name} socket", f"attempt(socket.socket, {family}, {kind})", "EPERM")
        for name, family, kind in (
            ("AX.25", 3, 5), ("IPX", 4, 2), ("key", 15, 3), ("netlink", 16, 3), ("packet", 17, 3),
            ("packet datagram", 17, 2), ("RDS", 21, 5), ("CAN", 29, 3), ("TIPC", 30, 5),
            ("Bluetooth", 31, 3), ("ISDN", 34, 3), ("algorithm", 38, 5), ("vsock", 40, 1),
            ("vsock datagram", 40, 2), ("kernel connection", 41, 2), ("SMC", 43, 1), ("XDP", 44, 3),
        )
    ),
    Attempt("raw IPv4 socket", "attempt(socket.socket, 2, 3, 1)", "EPERM"),
    Attempt("raw IPv6 socket", "attempt(socket.socket, 10, 3, 58)", "EPERM"),
    Attempt("netlink, high bits", "call('socket', 0x1_0000_0010, 3, 0)", "EPERM"),
    Attempt("a mark that routes", "attempt(lambda: socket.socket().setsockopt(1, 36, 1))", "EPERM"),
    Attempt("ordinary sockets", "for family in (1, 2, 10):\n"
            "    attempt(lambda: socket.socket(family, 1).close())", "ALLOWED ALLOWED ALLOWED"),
)  # fmt: skip
async def test_only_ordinary_sockets_are_made(box: Box, attempt: Attempt) -> None:
    await is_contained(box, attempt)


TCP = """
def connect():
    s = socket.socket({family}); s.settimeout(5); s.connect(({address!r}, {port}))
attempt(connect)
"""
GONE = "ENETUNREACH|EADDRNOTAVAIL|EHOSTUNREACH|EINVAL"
METADATA = ("169.254.169.254", "169.254.170.2", "100.100.100.200", "192.0.0.192")
GATEWAYS = ("172.17.0.1", "172.18.0.1", "10.0.0.1", "10.0.2.2", "192.168.0.1", "192.168.65.2")


@attempts(
    *(Attempt(f"metadata service {ip}", TCP.format(family=2, address=ip, port=80), GONE)
      for ip in METADATA),
    Attempt("metadata service fd00:ec2::254",
            TCP.format(family=10, address="fd00:ec2::254", port=80), GONE),
    *(Attempt(f"gateway {ip}", TCP.format(family=2, address=ip, port=22), GONE)
      for ip in GATEWAYS),
    Attempt("the Internet", TCP.format(family=2, address="1.1.1.1", port=443), GONE),
    Attempt("the Internet by IPv6",
            TCP.format(family=10, address="2606:4700::1111", port=443), GONE),
    Attempt("the Internet by a mapped address",
            TCP.format(family=10, address="::ffff:1.1.1.1", port=443), GONE),
    Attempt("multicast and broadcast", "s = socket.socket(2, 2); s.setsockopt(1, 6, 1)\n"
            "attempt(s.sendto, b'x', ('255.255.255.255', 9))\n"
            "attempt(s.sendto, b'x', ('224.0.0.1', 9))", f"{GONE} {GONE}"),
    Attempt("DNS to a known server", "s = socket.socket(2, 2)\n"
            "attempt(s.sendto, b'x', ('8.8.8.8', 53))", GONE),
    Attempt("names", "for name in ('example.com', 'host.docker.internal',"
            " 'metadata.google.internal'):\n"
            "    try: socket.getaddrinfo(name, 80); print('FOUND', name)\n"
            "    except socket.gaierror: print('none')", "none none none"),
    Attempt("interfaces", "print(*(line.split(':')[0].strip()"
            " for line in open('/proc/net/dev').readlines()[2:]))", "lo"),
    Attempt("routes", "print(len(open('/proc/net/route').readlines()))", "1"),
    Attempt("sockets of others", "print(len(open('/proc/net/unix').readlines()),"
            " len(open('/proc/net/tcp').readlines()))", "1 1"),
)  # fmt: skip
async def test_no_address_is_reached(box: Box, attempt: Attempt) -> None:
    await is_contained(box, attempt)


class Visitors:
    """A listener on every address of this machine, and on an abstract socket."""

    def __init__(self) -> None:
        self.count = 0
        self.port = 0
        self.name = f"noosphere-{uuid.uuid4().hex}"

    async def welcome(self, _reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.count += 1
        writer.close()


@pytest_asyncio.fixture(loop_scope="module")
async def visitors() -> AsyncIterator[Visitors]:
    made = Visitors()
    unix = socket.socket(socket.AF_UNIX)
    unix.bind(f"\0{made.name}")
    tcp = await asyncio.start_server(made.welcome, "0.0.0.0", 0)  # noqa: S104 - as services do.
    async with tcp, await asyncio.start_unix_server(made.welcome, sock=unix):
        made.port = tcp.sockets[0].getsockname()[1]
        yield made


def addresses() -> list[str]:
    """Every IPv4 address of this machine."""
    found = {"127.0.0.1", "127.0.1.1", "0.0.0.0"}  # noqa: S104
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(
            ["hostname", "-I"], capture_output=True, text=True, timeout=5, check=True
        )
        found |= {word for word in done.stdout.split() if ":" not in word}
    with contextlib.suppress(OSError):
        found |= {str(info[4][0]) for info in socket.getaddrinfo(socket.gethostname(), 1, 2)}
    return sorted(found)


async def test_no_address_of_this_very_machine_is_reached(box: Box, visitors: Visitors) -> None:
    writer = (await asyncio.open_connection("127.0.0.1", visitors.port))[1]
    writer.close()
    program = f"""
for address in {addresses()!r}:
    def connect():
        s = socket.socket(); s.settimeout(5); s.connect((address, {visitors.port}))
    attempt(connect)
"""
    got = await tries(box, program)
    assert len(got) == len(addresses())
    assert set(got) <= {"ECONNREFUSED", *GONE.split("|")}
    assert visitors.count == 1


async def test_an_abstract_socket_of_this_machine_is_not_there(
    box: Box, visitors: Visitors
) -> None:
    _, writer = await asyncio.open_unix_connection(f"\0{visitors.name}")
    writer.close()
    program = f"attempt(socket.socket(1).connect, '\\0{visitors.name}')"
    await is_contained(box, Attempt("", program, "ECONNREFUSED"))
    assert visitors.count == 1


SEARCH = """
found = []
for top, folders, names in os.walk('/'):
    folders[:] = [n for n in folders if os.path.join(top, n) not in ('/proc', '/sys', '/usr')]
    for name in names:
        path = os.path.join(top, name)
        try:
            if stat.S_ISSOCK(os.lstat(path).st_mode):
                found.append(path)
        except OSError:
            pass
print(*found, 'end')
for path in ('/var/run/docker.sock', '/run/docker.sock', '/run/containerd/containerd.sock',
             '/run/dbus/system_bus_socket', '/run/systemd/private', '/run/user/0/bus',
             '/tmp/.X11-unix/X0', '/run/host/docker.sock', '/run/podman/podman.sock'):
    try:
        socket.socket(1).connect(path)
        print('REACHED', path)
    except OSError:
        pass
"""


async def test_no_socket_of_an_engine_is_found(site: Site) -> None:
    box = await site.make()
    await is_contained(box, Attempt("", SEARCH, "end"))


async def test_a_port_of_another_sandbox_is_not_reached(site: Site) -> None:
    program = "s = socket.socket(); s.bind(('0.0.0.0', 8000)); s.listen(); print(1); s.accept()"
    server = await site.other.start(["python3", "-c", f"import socket; {program}"])
    async for _ in server.output():
        break
    await is_contained(
        site.box, Attempt("", TCP.format(family=2, address="127.0.0.1", port=8000), "ECONNREFUSED")
    )
    await server.cancel()
    await server.result()
