"""Sandboxes kept ready: of the right kind, used once, made a few at a time, given up in time."""

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from sandbox.base import Enforcement
from sandbox.bubblewrap import BubblewrapDriver
from sandbox.client import SandboxClient
from sandbox.limits import MIB
from sandbox.policy import NetworkPolicy, NetworkRule, Policy
from services.sandboxes.counts import Totals
from services.sandboxes.live import Live
from services.sandboxes.pool import HANDED_S, Breaker, Wanted, key_of
from tests.services.sandboxes.pooling import SMALL, SPEC, Time, Watched, pooled, until


@pytest.fixture
async def driver(tmp_path: Path) -> AsyncIterator[Watched]:
    real = BubblewrapDriver(state_dir=tmp_path / "state")
    await real.start()
    yield Watched(real)
    await real.aclose()


def test_three_failures_in_a_row_open_the_breaker_and_each_more_doubles_the_wait() -> None:
    breaker = Breaker()
    for at in (0.0, 1.0):
        assert breaker.allows(at)
        breaker.begin()
        breaker.fail(at)
    assert not breaker.is_open
    breaker.fail(2.0)
    assert breaker.is_open
    # One that had begun before it opened says nothing new.
    breaker.fail(3.0)
    at, waits = 2.0, []
    for _ in range(7):
        assert breaker.opens_at is not None
        waits.append(breaker.opens_at - at)
        assert not breaker.allows(breaker.opens_at - 0.001)
        at = breaker.opens_at
        assert breaker.allows(at)
        breaker.begin()
        assert not breaker.allows(at)  # A single attempt at a time.
        breaker.fail(at)
    assert waits == [30, 60, 120, 240, 480, 600, 600]


def test_a_success_closes_the_breaker_and_what_was_broken_off_tells_nothing() -> None:
    breaker = Breaker()
    for _ in range(3):
        breaker.begin()
        breaker.fail(0.0)
    breaker.begin()
    breaker.give_up()
    assert breaker.is_open
    assert breaker.allows(30.0)
    breaker.begin()
    breaker.succeed()
    assert not breaker.is_open
    assert breaker == Breaker()


def test_a_kind_is_image_policy_limits_and_place_of_files_alone() -> None:
    same = [
        SPEC,
        replace(SPEC, sandbox_id="other", labels={"a": "b"}, demanded=frozenset({"memory"})),
        replace(SPEC, policy=Policy(env={"TOKEN": "secret"})),
    ]
    allowed = NetworkPolicy("allow", (NetworkRule("example.org"),))
    others = [
        replace(SPEC, image="another"),
        replace(SPEC, image_digest="sha256:1"),
        replace(SPEC, image_digest="sha256:2"),
        replace(SPEC, limits=replace(SMALL, pids=17)),
        replace(SPEC, limits=replace(SMALL, memory_bytes=129 * MIB)),
        replace(SPEC, policy=Policy(network=allowed)),
        replace(SPEC, disk="image"),
        replace(SPEC, accepts_per_process=True),
    ]
    assert len({key_of(spec) for spec in same}) == 1
    assert len({key_of(spec) for spec in (SPEC, *others)}) == len(others) + 1
    assert len(key_of(SPEC)) == 64  # As wide as the column.


@pytest.mark.bubblewrap
async def test_what_is_claimed_is_fresh_and_never_comes_back(driver: Watched) -> None:
    async with pooled(driver, Wanted(SPEC, 1), labels={"pool": "n"}) as pool:
        seen = set()
        for turn in ("a", "b", "c"):
            await until(pool, lambda: pool.ready == 1)
            (held,) = (info for info in await driver.list({}) if info.sandbox_id not in seen)
            assert held.labels == {"pool": "n"}
            assert pool.holds(held.sandbox_id)
            ready = await pool.claim(replace(SPEC, policy=Policy(env={"TURN": turn})))
            assert ready is not None
            assert (ready.driver_id, ready.key) == (held.sandbox_id, key_of(SPEC))
            # It is the pool's no more before whoever claims it has it.
            assert pool.ready == 0
            execution = await ready.client.execute(
                'echo "$TURN" $(ls); touch used', timeout_s=30, output_limit_bytes=1000
            )
            out = b"".join([chunk.data async for chunk in execution.output()])
            assert out == f"{turn}\n".encode()
            seen.add(ready.driver_id)
            await ready.client.aclose()
        assert len(seen) == 3
        assert (pool.stats.hits, pool.stats.misses) == (3, 0)


@pytest.mark.bubblewrap
async def test_other_kinds_are_not_given_and_an_empty_pool_counts_as_missed(
    driver: Watched,
) -> None:
    async with pooled(driver, Wanted(SPEC, 1)) as pool:
        await until(pool, lambda: pool.ready == 1)
        assert await pool.claim(replace(SPEC, limits=replace(SMALL, pids=17))) is None
        assert (pool.stats.hits, pool.stats.misses, pool.stats.others) == (0, 0, 1)
        driver.may_create.clear()
        first = await pool.claim(SPEC)
        assert first is not None
        assert await pool.claim(SPEC) is None
        assert (pool.stats.hits, pool.stats.misses, pool.stats.others) == (1, 1, 1)
        driver.may_create.set()
        await first.client.aclose()


@pytest.mark.bubblewrap
async def test_what_does_not_hold_here_is_left_to_the_driver_to_refuse(driver: Watched) -> None:
    real = await driver.capabilities()
    driver.report = replace(real, items={**real.items, "cpu": Enforcement.UNAVAILABLE})
    async with pooled(driver, Wanted(SPEC, 1)) as pool:
        await until(pool, lambda: pool.ready == 1)
        assert await pool.claim(replace(SPEC, demanded=frozenset({"cpu"}))) is None
        assert pool.ready == 1
        ready = await pool.claim(SPEC)
        assert ready is not None
        await ready.client.aclose()


@pytest.mark.bubblewrap
async def test_no_more_than_two_are_made_at_once(driver: Watched) -> None:
    driver.may_create.clear()
    async with pooled(driver, Wanted(SPEC, 5)) as pool:
        await driver.crowded.wait()
        assert pool.making == 2
        driver.may_create.set()
        await pool.wait_filled()
        assert (pool.ready, driver.tries, driver.most_at_once) == (5, 5, 2)
    assert await driver.names() == set()


@pytest.mark.bubblewrap
async def test_what_fails_again_and_again_is_tried_more_rarely_and_comes_back(
    driver: Watched,
) -> None:
    time = Time()
    driver.is_refusing = True
    async with pooled(driver, Wanted(SPEC, 1), clock=time) as pool:
        await until(pool, lambda: pool.stats.failures == 3)
        assert pool.open_breakers == 1
        pool._look()
        assert (pool.making, driver.tries) == (0, 3)
        time.at += 30
        await pool.want([Wanted(SPEC, 1)])
        await until(pool, lambda: pool.stats.failures == 4)
        time.at += 59
        pool._look()
        assert (pool.making, driver.tries) == (0, 4)
        time.at += 1
        driver.is_refusing = False
        await pool.want([Wanted(SPEC, 1)])
        await pool.wait_filled()
        assert (pool.open_breakers, driver.tries, pool.stats.made) == (0, 5, 1)


@pytest.mark.bubblewrap
async def test_one_kind_that_fails_does_not_keep_another_from_being_made(driver: Watched) -> None:
    broken = replace(SPEC, image="there-is-none")
    async with pooled(driver, Wanted(broken, 1), Wanted(SPEC, 2)) as pool:
        await until(pool, lambda: pool.ready == 2 and pool.stats.failures == 3)
        assert pool.open_breakers == 1


@pytest.mark.bubblewrap
async def test_those_not_wanted_any_more_end(driver: Watched) -> None:
    other = replace(SPEC, limits=replace(SMALL, pids=17))
    another = replace(SPEC, limits=replace(SMALL, pids=18))
    async with pooled(driver, Wanted(SPEC, 1), Wanted(other, 2)) as pool:
        await pool.wait_filled()
        first = await driver.names()
        assert len(first) == 3
        await pool.want([Wanted(SPEC, 1), Wanted(other, 1)])
        second = await driver.names()
        assert second < first
        assert len(second) == 2
        await pool.want([Wanted(another, 1), Wanted(other, 1)])
        await pool.wait_filled()
        third = await driver.names()
        assert len(third) == 2
        assert len(third - second) == 1
        # What is asked for in two ways is one kind.
        await pool.want([Wanted(other, 1), Wanted(replace(other, labels={"a": "b"}), 1)])
        await pool.wait_filled()
        assert len(await driver.names()) == 2
        await pool.want([])
        assert await driver.names() == set()
        assert (pool.stats.made, pool.stats.ended, pool.stats.lost) == (5, 5, 0)


@pytest.mark.bubblewrap
async def test_one_that_ended_by_itself_is_neither_given_nor_kept(driver: Watched) -> None:
    async with pooled(driver, Wanted(SPEC, 2)) as pool:
        await pool.wait_filled()
        kind = pool._kinds[key_of(SPEC)]
        first, second = kind.ready
        await driver.stop(first.driver_id)
        await first.client.wait_lost()
        given = await pool.claim(SPEC)
        assert given is second
        await pool.wait_filled()
        assert pool.stats.lost == 1
        assert first.driver_id not in {ready.driver_id for ready in kind.ready}
        await given.client.aclose()


@pytest.mark.bubblewrap
async def test_what_is_under_way_when_the_pool_closes_leaves_nothing(driver: Watched) -> None:
    driver.may_create.clear()
    async with pooled(driver, Wanted(SPEC, 3)) as pool:
        await driver.crowded.wait()
    assert pool.making == 0
    assert await driver.names() == set()


@pytest.mark.bubblewrap
async def test_what_was_handed_over_counts_as_held_for_a_while(driver: Watched) -> None:
    time = Time()
    async with pooled(driver, Wanted(SPEC, 1), clock=time) as pool:
        await pool.wait_filled()
        given = await pool.claim(SPEC)
        assert given is not None
        time.at += HANDED_S - 1
        assert pool.holds(given.driver_id)
        time.at += 1
        assert not pool.holds(given.driver_id)
        await given.client.aclose()


def test_creations_are_counted_by_whether_there_was_one() -> None:
    time = Time()
    totals = Totals(time)
    for id_, name in (("a", "a"), ("b", "pool-1")):
        totals.begin(id_)
        time.at += 0.02
        live = Live(id_, name, None, {})
        totals.added(live)
        totals.added(live)  # Again, after a pause.
    for kind in ("cold", "warm"):
        assert sum(totals.creations[kind].counts) == 1
        assert totals.creations[kind].sum_s == pytest.approx(0.02)
    totals.begin("failed")
    time.at += 301
    totals.begin("c")
    assert list(totals._begun) == ["c"]


@pytest.mark.bubblewrap
async def test_a_client_gives_what_it_is_told_to_later(driver: Watched) -> None:
    await driver.create(SPEC)
    client = await SandboxClient.connect(await driver.open_channel("mine"), {"A": "1", "B": "2"})
    client.set_env({"B": "3"})
    execution = await client.execute(
        'echo "$A-$B" && test -n "$PATH"', timeout_s=30, output_limit_bytes=1000
    )
    assert b"".join([chunk.data async for chunk in execution.output()]) == b"-3\n"
    assert (await execution.result()).exit_code == 0
    await client.aclose()
