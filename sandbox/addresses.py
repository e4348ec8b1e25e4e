"""Which hosts and addresses there are to connect to, and which of them are nobody's but the host's.

An address is special unless it is one of the public Internet: loopback, link-local (metadata
services), private, shared (CGNAT), multicast, reserved, and every form of IPv6 that carries an
address of IPv4 (v4-mapped, 6to4, NAT64, Teredo), for what such a form leads to is not said by it.
"""

import ipaddress
import socket
from collections.abc import Iterable

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

# The registries of special-purpose addresses of IANA (RFC 6890 and its updates), and what clouds
# answer on beside them.
_SPECIAL_4 = tuple(
    ipaddress.IPv4Network(text)
    for text in (
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",
        "127.0.0.0/8",
        "168.63.129.16/32",  # Azure's own services, on a public address.
        "169.254.0.0/16",
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.31.196.0/24",
        "192.52.193.0/24",
        "192.88.99.0/24",
        "192.168.0.0/16",
        "192.175.48.0/24",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/4",
        "240.0.0.0/4",
    )
)
_GLOBAL_6 = ipaddress.IPv6Network("2000::/3")
_SPECIAL_6 = tuple(
    ipaddress.IPv6Network(text)
    for text in (
        "2001::/23",  # Teredo, benchmarks, ORCHID and others.
        "2001:db8::/32",
        "2002::/16",  # 6to4.
        "2620:4f:8000::/48",
        "3fff::/20",
    )
)


def is_special(address: Address) -> bool:
    """Whether an address is none of the public Internet."""
    if isinstance(address, ipaddress.IPv4Address):
        return any(address in network for network in _SPECIAL_4)
    return address not in _GLOBAL_6 or any(address in network for network in _SPECIAL_6)


def is_special_range(network: Network) -> bool:
    """Whether a range has special addresses only: it names them, as 0.0.0.0/0 does not."""
    if isinstance(network, ipaddress.IPv4Network):
        return any(network.subnet_of(special) for special in _SPECIAL_4)
    if any(network.subnet_of(special) for special in _SPECIAL_6):
        return True
    return not network.overlaps(_GLOBAL_6)


def is_own(address: Address) -> bool:
    """Whether an address is one of this very machine; nothing is sent to find out."""
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            # The kernel speaks to an address of its own from that address.
            probe.connect((str(address), 9))
            return bool(ipaddress.ip_address(probe.getsockname()[0]) == address)
    except OSError:
        return False


def parse_host(text: str) -> str | Address:
    """A name in lower case without its last dot, or an address in its usual form.

    Raises ValueError for anything else, such as the other ways to write an address (127.1,
    0x7f000001, 2130706433, 0177.0.0.1), which programs understand each in their own way.
    """
    if text.startswith("[") and text.endswith("]"):
        if "%" in text:
            raise ValueError("an address with a zone")
        return ipaddress.IPv6Address(text[1:-1])
    name = text.lower().removesuffix(".")
    last = name.rpartition(".")[2]
    if last.isdigit() or last.startswith("0x"):
        return ipaddress.IPv4Address(text)
    if not is_name(name):
        raise ValueError("not a host name")
    return name


def parse_ranges(texts: Iterable[str]) -> tuple[Network, ...]:
    """Ranges of addresses from how they are written. Raises ValueError."""
    return tuple(ipaddress.ip_network(text) for text in texts)


def is_name(host: str) -> bool:
    """Whether this is a DNS name in ASCII, as resolvers are asked for it."""
    labels = host.split(".")
    return (
        0 < len(host) <= 253
        and not labels[-1].isdigit()  # 127.1 is a way to write an address.
        and all(
            0 < len(label) <= 63
            and label.isascii()
            and label.replace("-", "").replace("_", "").isalnum()
            and not label.startswith("-")
            and not label.endswith("-")
            for label in labels
        )
    )
