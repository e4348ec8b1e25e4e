"""A network between two machines that can be cut: namespaces with a router between them."""

import ipaddress
import secrets
import subprocess
from types import TracebackType
from typing import Self

# Set aside for measurements of networks (RFC 2544): nobody's addresses.
_RANGE = ipaddress.ip_network("198.18.0.0/15")


class Network:
    """This machine, a router, and a far machine behind it, each with a network stack of its own.

    The namespaces have no names and live as long as the processes that hold them, which end with
    this one: nothing is left behind, however the tests end.
    """

    def __init__(self, ip: str) -> None:
        self._ip = ip
        self._holders: list[subprocess.Popen[bytes]] = []
        first = int(_RANGE[0]) + 8 * secrets.randbelow(_RANGE.num_addresses // 8)
        near, here, there, far = (str(ipaddress.ip_address(first + n)) for n in (1, 2, 5, 6))
        self.address = far
        self._near, self._here, self._there = near, here, there
        self._beyond = f"{ipaddress.ip_address(first + 4)}/30"
        self._cable = f"nst{secrets.token_hex(5)}"

    def __enter__(self) -> Self:
        try:
            self._lay()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self,
        _type: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        for holder in self._holders:
            holder.kill()
            holder.communicate(timeout=10)

    @property
    def far(self) -> tuple[str, ...]:
        """The words before a command that make it run on the far machine."""
        return ("nsenter", "--net", "--target", str(self._holders[1].pid), "--")

    def drop(self) -> None:
        """Let the router swallow whatever it is given, without a word to anybody."""
        for address in (self.address, self._near):
            self._on_router("route", "add", "blackhole", f"{address}/32")

    def reset(self) -> None:
        """Let the router answer in the far machine's place, where nobody knows of connections."""
        self._on_router("address", "add", f"{self.address}/32", "dev", "lo")

    def heal(self) -> None:
        """Undo `drop` or `reset`."""
        for address in (self.address, self._near):
            self._on_router("route", "del", "blackhole", f"{address}/32", may_fail=True)
        self._on_router("address", "del", f"{self.address}/32", "dev", "lo", may_fail=True)

    def _lay(self) -> None:
        router, far = self._machine(), self._machine()
        self._run("link", "add", self._cable, "type", "veth", "peer", "name", "near", netns=router)
        self._run("address", "add", f"{self._near}/30", "dev", self._cable)
        self._run("link", "set", self._cable, "up")
        self._on_router("link", "add", "beyond", "type", "veth", "peer", "name", "eth0", netns=far)
        self._on_router("address", "add", f"{self._here}/30", "dev", "near")
        self._on_router("address", "add", f"{self._there}/30", "dev", "beyond")
        for device in ("lo", "near", "beyond"):
            self._on_router("link", "set", device, "up")
        self._call(*self._inside(router), "sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward")
        within = (*self._inside(far), self._ip)
        self._call(*within, "address", "add", f"{self.address}/30", "dev", "eth0")
        for device in ("lo", "eth0"):
            self._call(*within, "link", "set", device, "up")
        self._call(*within, "route", "add", "default", "via", self._there)
        self._run("route", "add", self._beyond, "via", self._here)

    def _machine(self) -> int:
        """Begin a namespace; gives the process that holds it."""
        holder = subprocess.Popen(
            ["unshare", "--net", "cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self._holders.append(holder)
        assert holder.stdin is not None
        assert holder.stdout is not None
        # What answers runs in the namespace already.
        holder.stdin.write(b"ready\n")
        holder.stdin.flush()
        assert holder.stdout.readline() == b"ready\n"
        return holder.pid

    def _inside(self, pid: int) -> tuple[str, ...]:
        return ("nsenter", "--net", "--target", str(pid), "--")

    def _on_router(self, *words: str, netns: int | None = None, may_fail: bool = False) -> None:
        self._run(*words, netns=netns, within=self._inside(self._holders[0].pid), may_fail=may_fail)

    def _run(
        self,
        *words: str,
        netns: int | None = None,
        within: tuple[str, ...] = (),
        may_fail: bool = False,
    ) -> None:
        place = () if netns is None else ("netns", str(netns))
        self._call(*within, self._ip, *words, *place, may_fail=may_fail)

    def _call(self, *command: str, may_fail: bool = False) -> None:
        done = subprocess.run(command, capture_output=True, timeout=30, check=False)
        assert done.returncode == 0 or may_fail, (command, done.stderr.decode())
