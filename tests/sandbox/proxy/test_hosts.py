"""Which hosts and addresses the proxy reaches, however they are named."""

import ipaddress
from collections.abc import Sequence

import pytest

from sandbox.addresses import Address, is_own, is_special, parse_host, parse_ranges
from sandbox.network_rules import guarded
from sandbox.policy import NetworkRule
from sandbox.proxy import Verdict
from tests.sandbox.proxy.conftest import ORG, PUBLIC, Web, World, ask, status

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
