"""What sandboxes use: sampled when it is due, followed while somebody looks, kept for a time."""

import asyncio
from contextlib import aclosing
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import select

import schema
from models.base import now
from models.sandboxes import Sandbox, SandboxUsage
from models.states import SandboxStatus
from schema.execution.engine import Engine
from services.base import Viewer, work
from services.errors import RequestError, UserError
from services.sandboxes import lifecycle, usage
from services.sandboxes.live import Live
from services.sandboxes.usage import Meter, Sample
from tests.services.sandboxes.conftest import BOTH_DATABASES, Launch, Server, ran
from tests.services.sandboxes.graph import ask, events

pytestmark = pytest.mark.bubblewrap
# Long enough that only what a test does itself is sampled.
NEVER_S = 86_400.0


class Time:
    """A clock that goes when it is told to."""

    def __init__(self) -> None:
        self.at = 1000.0

    def __call__(self) -> float:
        return self.at


async def samples(server: Server, sandbox_id: str) -> list[Sample]:
    columns = [getattr(SandboxUsage, name) for name in Sample.__dataclass_fields__]
    async with server.deps.db.reading() as connection:
        found = await connection.execute(
            select(*columns).where(SandboxUsage.sandbox_id == sandbox_id).order_by(SandboxUsage.at)
        )
        return [Sample(*values) for values in found]


async def metered(server: Server, time: Time) -> tuple[Meter, Viewer, Sandbox, Live]:
    ada = await server.person("ada")
    box = await lifecycle.create(server.deps, ada)
    node = await server.host.node()
    return Meter(node, clock=time), ada, box, node.live[box.id]


async def test_a_sandbox_nobody_looks_at_is_sampled_at_one_interval_in_twelve(
    launch: Launch,
) -> None:
    server, time = await launch(sandbox_usage_interval_s=NEVER_S), Time()
    meter, _, box, _ = await metered(server, time)
    kept = []
    for _ in range(25):
        kept.append(await meter.tick())
        time.at += NEVER_S
    assert [at for at, count in enumerate(kept) if count] == [0, 12, 24]
    assert len(await samples(server, box.id)) == 3


async def test_a_server_samples_by_itself_and_keeps_what_programs_wrote(launch: Launch) -> None:
    server = await launch(sandbox_usage_interval_s=0.02)
    ada = await server.person("ada")
    box = await lifecycle.create(server.deps, ada)
    async with asyncio.timeout(60):
        while not await samples(server, box.id):
            continue
        await ran(server.deps, ada, box.id, "head -c 3000000 /dev/zero > file")
        # No verb wrote it, and nobody looks at what is used.
        while ((await samples(server, box.id))[-1].disk_bytes or 0) < 3_000_000:
            continue


async def test_one_that_is_looked_at_is_sampled_at_every_interval_for_a_while(
    launch: Launch,
) -> None:
    server, time = await launch(sandbox_usage_interval_s=NEVER_S), Time()
    meter, _, _, live = await metered(server, time)
    assert await meter.tick() == 1
    time.at += NEVER_S
    await meter.look(live)
    kept = []
    for _ in range(6):
        kept.append(await meter.tick())
        time.at += NEVER_S
    assert kept == [1, 1, 1, 1, 0, 0]


async def test_all_who_look_at_once_see_the_same_sample(launch: Launch) -> None:
    server, time = await launch(sandbox_usage_interval_s=NEVER_S), Time()
    meter, _, _, live = await metered(server, time)
    first, second = await asyncio.gather(meter.look(live), meter.look(live))
    assert first is second
    time.at += NEVER_S
    assert await meter.look(live) is not first
    meter.forget(live)
    assert (meter._last, meter._looked, meter._kept) == ({}, {}, {})


async def test_a_sample_tells_what_was_used(launch: Launch, any_kind: str) -> None:
    server, time = await launch(any_kind, sandbox_usage_interval_s=NEVER_S), Time()
    meter, ada, box, live = await metered(server, time)
    before = await meter.look(live)
    done = await ran(
        server.deps, ada, box.id, "head -c 3000000 /dev/zero > file; i=0; "
        "while [ $i -lt 20000 ]; do i=$((i+1)); done",
    )  # fmt: skip
    assert done.exit_code == 0
    time.at += NEVER_S
    after = await meter.look(live)
    assert before.disk_bytes is not None
    assert after.disk_bytes is not None
    assert after.disk_bytes - before.disk_bytes >= 3_000_000
    assert before.at < after.at
    if after.cpu_ms is not None:  # Ordinary users have no cgroups.
        assert before.cpu_ms is not None
        assert after.cpu_ms > before.cpu_ms
        assert after.memory_bytes is not None
        assert after.memory_bytes > 3_000_000
        assert after.pids is not None
        assert after.pids >= 1
    assert await meter.tick() == 1
    assert await samples(server, box.id) == [after]


async def test_one_that_ended_by_itself_does_not_keep_others_from_being_sampled(
    launch: Launch,
) -> None:
    server, time = await launch(sandbox_usage_interval_s=NEVER_S), Time()
    meter, ada, box, _ = await metered(server, time)
    node = await server.host.node()
    node.live["gone"] = Live("gone", "gone", None, {})
    try:
        assert await meter.tick() == 1
    finally:
        del node.live["gone"]
    assert len(await samples(server, box.id)) == 1
    await lifecycle.pause(server.deps, ada, sandbox_id=box.id)
    time.at += 12 * NEVER_S
    # Nothing changes while it is paused.
    assert await meter.tick() == 0


@BOTH_DATABASES
async def test_samples_go_when_they_are_old(launch: Launch) -> None:
    server = await launch(sandbox_usage_interval_s=NEVER_S, sandbox_usage_retention_s=1000)
    ada = await server.person("ada")
    async with work(server.deps) as unit:
        box = Sandbox(user_id=ada.id, driver="none", node_id="elsewhere", image_name="none")
        unit.session.add(box)
        await unit.session.flush()
        id_ = box.id
        for age_s in range(0, 3000, 2):
            unit.session.add(SandboxUsage(sandbox_id=id_, at=now() - timedelta(seconds=age_s)))
    dropped = await usage.prune(server.deps)
    left = await samples(server, id_)
    assert dropped + len(left) == 1500
    assert 450 <= len(left) <= 500
    assert await usage.prune(server.deps) <= 50


async def test_following_gives_samples_until_the_sandbox_ends_and_they_are_kept(
    launch: Launch,
) -> None:
    server = await launch(sandbox_usage_interval_s=0.05)
    ada = await server.person("ada")
    box = await lifecycle.create(server.deps, ada)
    seen: list[Sample] = []
    async with asyncio.timeout(60), aclosing(usage.follow(server.deps, ada, box.id)) as following:
        async for sample in following:
            seen.append(sample)
            if len(seen) == 3:
                await lifecycle.stop(server.deps, ada, sandbox_id=box.id)
    assert len(seen) >= 3
    assert [sample.at for sample in seen] == sorted({sample.at for sample in seen})
    assert len(await samples(server, box.id)) >= 1


async def test_who_may_not_see_a_sandbox_cannot_follow_it(launch: Launch) -> None:
    server = await launch(sandbox_usage_interval_s=NEVER_S)
    ada, eve = await server.person("ada"), await server.person("eve")
    box = await lifecycle.create(server.deps, ada)
    for viewer, id_ in ((eve, box.id), (ada, "sbx_absent")):
        with pytest.raises(RequestError, match="no such sandbox"):
            await anext(usage.follow(server.deps, viewer, id_))
    admin = replace(eve, permissions=frozenset({"everything:read"}))
    async with aclosing(usage.follow(server.deps, admin, box.id)) as following:
        assert (await anext(following)).at <= now()


async def test_a_host_is_not_asked_about_what_it_does_not_have(launch: Launch) -> None:
    server = await launch(sandbox_usage_interval_s=NEVER_S)
    ada = await server.person("ada")
    box = await lifecycle.create(server.deps, ada)
    await lifecycle.stop(server.deps, ada, sandbox_id=box.id)
    with pytest.raises(UserError, match="has ended"):
        await server.host.ask(box, "usage")
    async with aclosing(usage.follow(server.deps, ada, box.id)) as following:
        told = [sample async for sample in following]
    # The last that is known; the node itself samples at once.
    assert told == (await samples(server, box.id))[-1:]


def test_a_sample_passes_between_nodes_as_it_is() -> None:
    sample = Sample(now(), 1, 2, None, 4, None, 6)
    assert Sample.from_json(sample.to_json()) == sample


HISTORY = """query ($id: ID!, $since: DateTime, $after: String) {
  sandbox(id: $id) {
    usage(first: 2, since: $since, after: $after) {
      nodes { sampledAt cpuMilliseconds memoryBytes pids diskBytes receivedBytes sentBytes }
      pageInfo { hasNextPage endCursor }
    }
  }
}"""
FOLLOW = "subscription ($id: ID!) { sandboxUsage(sandboxId: $id) { sampledAt pids memoryBytes } }"


@BOTH_DATABASES
async def test_the_graph_shows_samples_by_pages_newest_first(launch: Launch) -> None:
    server = await launch(sandbox_usage_interval_s=NEVER_S)
    ada, eve = await server.person("ada"), await server.person("eve")
    engine = Engine(schema.build()._schema)
    at = now()
    async with work(server.deps) as unit:
        box = Sandbox(
            user_id=ada.id,
            status=SandboxStatus.STOPPED,
            driver="none",
            node_id="elsewhere",
            image_name="none",
        )
        unit.session.add(box)
        await unit.session.flush()
        id_ = box.id
        # Not in the order of time.
        for age_s in (10, 40, 0, 30, 20):
            sampled_at = at - timedelta(seconds=age_s)
            unit.session.add(
                SandboxUsage(sandbox_id=id_, at=sampled_at, cpu_ms=age_s, rx=2**40, pids=1)
            )

    async def page(**variables: object) -> dict[str, Any]:
        answer = await ask(engine, server, ada, HISTORY, id=id_, **variables)
        return dict(answer["sandbox"]["usage"])

    first = await page()
    assert [node["cpuMilliseconds"] for node in first["nodes"]] == [0, 10]
    assert first["nodes"][0] | {"sampledAt": None} == {
        "sampledAt": None,
        "cpuMilliseconds": 0,
        "memoryBytes": None,
        "pids": 1,
        "diskBytes": None,
        "receivedBytes": 2**40,
        "sentBytes": None,
    }
    second = await page(after=first["pageInfo"]["endCursor"])
    assert [node["cpuMilliseconds"] for node in second["nodes"]] == [20, 30]
    assert second["pageInfo"]["hasNextPage"]
    recent = await page(since=(at - timedelta(seconds=15)).isoformat())
    assert [node["cpuMilliseconds"] for node in recent["nodes"]] == [0, 10]
    assert not recent["pageInfo"]["hasNextPage"]
    assert await ask(engine, server, eve, HISTORY, id=id_) == {"sandbox": None}
    (last,) = await events(engine, server, ada, FOLLOW, id=id_)
    assert (last["pids"], last["memoryBytes"]) == (1, None)
