"""What a sandbox may connect to, decided for names and for the addresses they stand for."""

import ipaddress
from collections.abc import Iterable

from sandbox.addresses import Address, Network, is_special, is_special_range
from sandbox.policy import NetworkRule


class NetworkRules:
    """The rules of one policy, as far as the operator lets them go.

    `private` are ranges of addresses that are not of the public Internet and that rules may name;
    without it none of those is reached, whatever the rules say.
    """

    def __init__(self, rules: Iterable[NetworkRule], private: Iterable[Network] = ()) -> None:
        self._names: list[NetworkRule] = []
        self._ranges: list[tuple[Network, NetworkRule]] = []
        self._private = tuple(private)
        for rule in rules:
            try:
                self._ranges.append((ipaddress.ip_network(rule.host), rule))
            except ValueError:
                self._names.append(rule)

    def for_name(self, name: str, port: int) -> NetworkRule | None:
        """The rule that names a host, in lower case; its addresses are still to be checked."""
        for rule in self._names:
            if port in rule.ports and _matches(rule.host.lower().removesuffix("."), name):
                return rule
        return None

    def for_address(self, address: Address, port: int, *, is_own: bool) -> NetworkRule | None:
        """The rule by which an address is reached; `is_own` says that it is the server's machine's.

        A range that goes beyond special addresses, such as 0.0.0.0/0, does not name them.
        """
        is_guarded = is_own or is_special(address)
        if is_guarded and not any(address in network for network in self._private):
            return None
        for network, rule in self._ranges:
            if port in rule.ports and address in network:
                names_it = is_special_range(network) or network.num_addresses == 1
                if names_it or not is_guarded:
                    return rule
        return None

    def reaches(self, name: str | None, address: Address, port: int, *, is_own: bool) -> str | None:
        """The host of the rule by which a connection to a host at an address is allowed, or None.

        `name` is None where the address itself was asked for.
        """
        by_address = self.for_address(address, port, is_own=is_own)
        if name is None:
            return by_address.host if by_address is not None else None
        by_name = self.for_name(name, port)
        if by_name is None or ((is_own or is_special(address)) and by_address is None):
            return None
        return by_name.host


def _matches(pattern: str, name: str) -> bool:
    if pattern.startswith("*."):
        return name.endswith(pattern[1:]) and len(name) > len(pattern) - 1
    return name == pattern


def guarded(rules: Iterable[NetworkRule], private: Iterable[Network]) -> list[NetworkRule]:
    """The rules that name addresses which the operator has not listed as `private`."""
    listed = tuple(private)
    found = []
    for rule in rules:
        try:
            network = ipaddress.ip_network(rule.host)
        except ValueError:
            continue
        if is_special_range(network) and not any(_is_within(network, one) for one in listed):
            found.append(rule)
    return found


def _is_within(inner: Network, outer: Network) -> bool:
    if isinstance(inner, ipaddress.IPv4Network) and isinstance(outer, ipaddress.IPv4Network):
        return inner.subnet_of(outer)
    if isinstance(inner, ipaddress.IPv6Network) and isinstance(outer, ipaddress.IPv6Network):
        return inner.subnet_of(outer)
    return False
