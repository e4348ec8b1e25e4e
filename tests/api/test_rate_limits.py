"""What operations cost, what is left, and what happens when nothing is."""

import json
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import connect

import schema
from app import graphql_budget
from models.base import new_id, now
from resolvers.base import Context
from schema.execution import Engine, Prepared
from services.accounts import rate_limits
from services.accounts.sessions import Client
from services.base import ANONYMOUS, Deps
from services.errors import RateLimitedError, RequestError
from tests.api.people import sign_up
from tests.api.serving import served
from tests.fixtures import Api
from tests.services.faulty_bus import FaultyBus

ADDRESS = "192.0.2.7"
QUERY = "{ conversations(first: 10) { nodes { id user { id } } } }"
POINTS = 1 + 10 + 1 + 10 + 1
SET = """mutation($input: RateLimitConfigSetInput!) { rateLimitConfigSet(input: $input) {
  rateLimitConfig { id pointsPerMinute role { name } user { username } }
  errors { code path } } }"""


async def test_every_answer_tells_what_it_cost_and_what_is_left(tmp_path: Path) -> None:
    async with served(tmp_path, points_per_minute=1000) as server:
        ann = await sign_up(server.deps, "ann")
        for spent in (POINTS, 2 * POINTS):
            cost = (await server.post(QUERY, ann)).json()["extensions"]["cost"]
            assert 0 < cost.pop("resetAfter") <= 60
            assert cost == {
                "requested": POINTS,
                "limit": 1000,
                "spent": spent,
                "left": 1000 - spent,
            }


async def test_who_has_too_little_left_is_told_how_long_to_wait(tmp_path: Path) -> None:
    async with served(tmp_path, points_per_minute=40) as server:
        ann, ben = await sign_up(server.deps, "ann"), await sign_up(server.deps, "ben")
        assert (await server.post(QUERY, ann)).status_code == 200
        for accept in ("application/json", "application/graphql-response+json"):
            refused = await server.post(QUERY, ann, accept=accept)
            assert refused.status_code == 429
            (error,) = refused.json()["errors"]
            assert error["extensions"]["code"] == "RATE_LIMITED"
            assert 0 < error["extensions"]["retryAfter"] <= 60
            assert 1 <= int(refused.headers["retry-after"]) <= 60
            assert error["message"].startswith(
                f"Your account has spent {POINTS} of 40 points of this minute, and the operation "
                f"costs {POINTS}. Try again in "
            )
        # What was refused cost nothing, and what is left can be spent; nobody else is touched.
        assert (await server.post("{ viewer { id } }", ann)).json()["extensions"]["cost"][
            "spent"
        ] == POINTS + 2
        assert (await server.post(QUERY, ben)).status_code == 200


async def test_what_no_minute_would_do_for_is_no_matter_of_waiting(tmp_path: Path) -> None:
    async with served(tmp_path, points_per_minute=20) as server:
        ann = await sign_up(server.deps, "ann")
        refused = await server.post(QUERY, ann)
        (error,) = refused.json()["errors"]
        assert error["extensions"] == {"code": "LIMIT"}
        assert "retry-after" not in refused.headers
        assert "costs 23 points; your account may spend 20 a minute" in error["message"]


async def test_nobody_signed_in_is_counted_by_address(tmp_path: Path) -> None:
    async with served(tmp_path, anonymous_points_per_minute=2) as server:
        answer = await server.post("{ viewer { id } }")
        assert answer.json()["extensions"]["cost"]["left"] == 0
        refused = await server.post("{ viewer { id } }")
        assert refused.status_code == 429
        assert refused.json()["errors"][0]["message"].startswith("Your address has spent ")
        ann = await sign_up(server.deps, "ann")
        assert (await server.post("{ viewer { id } }", ann)).status_code == 200


async def test_who_has_nothing_left_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    async with served(tmp_path, anonymous_points_per_minute=15) as server:
        # Documents that cannot be run are read all the same, and paid for.
        for _ in range(2):
            assert "errors" in (await server.post("{ nothing }")).json()
        refused = await server.post("{ this is no document")
        assert refused.status_code == 429
        (error,) = refused.json()["errors"]
        assert error["extensions"]["code"] == "RATE_LIMITED"
        assert error["message"].startswith("Your address has spent all points of this minute.")


async def test_reading_a_long_document_is_paid_for_once(tmp_path: Path) -> None:
    long = "{ viewer { id } } #" + "x" * 2_000
    async with served(tmp_path) as server:
        spent = [
            (await server.post(query)).json()["extensions"]["cost"]["spent"]
            for query in ("{ viewer { id } }", long, long)
        ]
        # Paid after reading and before the operation is.
        assert spent == [2, 2 + (len(long) - 1_000) // 10 + 2, 2 + (len(long) - 1_000) // 10 + 4]


async def test_a_socket_is_told_by_an_error_message(tmp_path: Path) -> None:
    async with (
        served(tmp_path, anonymous_points_per_minute=2) as server,
        connect(
            server.url.replace("http", "ws") + "/graphql",
            subprotocols=["graphql-transport-ws"],  # type: ignore[list-item]
        ) as socket,
    ):
        await socket.send(json.dumps({"type": "connection_init"}))
        assert json.loads(await socket.recv())["type"] == "connection_ack"
        payload = {"query": "{ viewer { id } }"}
        heard = []
        for id_ in ("1", "2"):
            await socket.send(json.dumps({"id": id_, "type": "subscribe", "payload": payload}))
            heard.append(json.loads(await socket.recv()))
            if id_ == "1":
                assert json.loads(await socket.recv())["type"] == "complete"
        assert heard[0]["payload"]["extensions"]["cost"]["left"] == 0
        assert (heard[1]["id"], heard[1]["type"]) == ("2", "error")
        (error,) = heard[1]["payload"]
        assert error["extensions"]["code"] == "RATE_LIMITED"
        assert 0 < error["extensions"]["retryAfter"] <= 60


async def test_zero_means_no_limit(tmp_path: Path) -> None:
    async with served(tmp_path, anonymous_points_per_minute=0) as server:
        answer = await server.post("{ rateLimit { left } }")
        assert answer.json() == {
            "data": {"rateLimit": None},
            "extensions": {"cost": {"requested": 2}},
        }


async def test_a_viewer_asks_for_its_own_budget(api: Api) -> None:
    ann = await api.person("ann")
    ask = "{ rateLimit { limit spent left resetAt } }"
    unspent = await api.run(ask, ann)
    assert (unspent["spent"], unspent["resetAt"]) == (0, None)
    before = now()
    await rate_limits.spend(api.deps, ann.viewer, ADDRESS, 70)
    budget = await api.run(ask, ann)
    assert budget == await api.run(ask, ann), "it stands still"
    left = datetime.fromisoformat(budget.pop("resetAt")) - before
    assert timedelta(seconds=59) < left < timedelta(seconds=90)
    assert budget == {"limit": 500_000_000, "spent": 70, "left": 499_999_930}
    assert (await api.run(ask))["limit"] == 50_000_000


async def test_limits_of_a_user_come_before_the_highest_of_their_roles(api: Api) -> None:
    admin = await api.person("admin")
    ann = await api.person("ann", "user", "viewer")
    roles = {role["name"]: role["id"] for role in await api.run("{ roles { id name } }", admin)}

    async def limit() -> int:
        return int((await api.run("{ rateLimit { limit } }", ann))["limit"])

    async def put(points: int, holder_id: str) -> Any:
        input_ = {"holderId": holder_id, "pointsPerMinute": points}
        return await api.run(SET, admin, input=input_)

    assert await limit() == 500_000_000
    await put(100, roles["user"])
    assert await limit() == 100
    made = await put(300, roles["viewer"])
    assert made["rateLimitConfig"]["role"] == {"name": "viewer"}
    assert await limit() == 300
    own = await put(7, ann.id)
    assert own["rateLimitConfig"]["user"] == {"username": "ann"}
    assert await limit() == 7
    again = await put(8, ann.id)
    assert again["rateLimitConfig"]["id"] == own["rateLimitConfig"]["id"]
    assert await limit() == 8

    listed = await api.run("{ rateLimitConfigs { nodes { id pointsPerMinute } } }", admin)
    assert [node["pointsPerMinute"] for node in listed["nodes"]] == [8, 300, 100]
    delete = "mutation($id: ID!) { rateLimitConfigDelete(id: $id) { errors { code } } }"
    for config in listed["nodes"]:
        assert (await api.run(delete, admin, id=config["id"]))["errors"] == []
    assert await limit() == 500_000_000
    (error,) = (await api.run(delete, admin, id=own["rateLimitConfig"]["id"]))["errors"]
    assert error["code"] == "NOT_FOUND"


@pytest.mark.parametrize(
    ("input_", "error"),
    [
        ({"holderId": ""}, ("NOT_FOUND", "input.holderId")),
        ({"holderId": new_id("rol")}, ("NOT_FOUND", "input.holderId")),
        ({"holderId": new_id("usr")}, ("NOT_FOUND", "input.holderId")),
        ({"holderId": new_id("cnv")}, ("NOT_FOUND", "input.holderId")),
        ({"holderId": "", "pointsPerMinute": 0}, ("INVALID", "input.pointsPerMinute")),
    ],
)
async def test_a_limit_that_makes_no_sense_is_refused(
    api: Api, input_: dict[str, Any], error: tuple[str, str]
) -> None:
    admin = await api.person("admin")
    payload = await api.run(SET, admin, input={"pointsPerMinute": 5, **input_})
    assert [(e["code"], ".".join(e["path"])) for e in payload["errors"]] == [error]


async def test_processes_count_together_and_each_for_itself_while_the_bus_is_away(
    deps: Deps, tmp_path: Path
) -> None:
    bus = FaultyBus(deps.bus)
    first = _beside(deps, bus)
    second = _beside(deps, bus)
    for process, spent in ((first, 40), (second, 80)):
        budget = await rate_limits.spend(process, ANONYMOUS, ADDRESS, 40)
        assert budget is not None
        assert budget.spent == spent
    bus.is_away = True
    alone = await rate_limits.spend(first, ANONYMOUS, ADDRESS, 50)
    assert alone is not None
    assert alone.spent == 50
    with pytest.raises(RateLimitedError):
        await rate_limits.spend(first, ANONYMOUS, ADDRESS, 60)


def _beside(deps: Deps, bus: FaultyBus) -> Deps:
    options = replace(deps.options, anonymous_points_per_minute=100)
    return replace(deps, options=options, bus=bus, caches={})


@pytest.mark.parametrize(
    ("one", "other", "is_same"),
    [
        ("2001:db8::1", "2001:db8::ffff:1", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("::ffff:192.0.2.7", "192.0.2.7", True),
        ("192.0.2.7", "192.0.2.8", False),
        (None, None, True),
    ],
)
async def test_an_address_of_version_6_stands_for_its_network(
    deps: Deps, one: str | None, other: str | None, is_same: bool
) -> None:
    await rate_limits.spend(deps, ANONYMOUS, one, 5)
    budget = await rate_limits.budget(deps, ANONYMOUS, other)
    assert budget is not None
    assert budget.spent == (5 if is_same else 0)


async def test_a_limit_set_by_another_process_is_followed(
    deps: Deps, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rate_limits, "_CONFIGS_S", 0.0)
    admin, ann = await sign_up(deps, "admin", "admin"), await sign_up(deps, "ann")
    await rate_limits.spend(deps, ann.viewer, None, 6)
    elsewhere = _beside(deps, FaultyBus(deps.bus))
    await rate_limits.configure(elsewhere, admin.viewer, holder_id=ann.id, points_per_minute=5)
    with pytest.raises(RequestError) as refused:
        await rate_limits.spend(deps, ann.viewer, None, 1)
    assert refused.value.code == "RATE_LIMITED"


async def test_who_has_spent_all_is_served_again_as_soon_as_the_limit_is_raised(
    deps: Deps, monkeypatch: pytest.MonkeyPatch
) -> None:
    admin, ann = await sign_up(deps, "admin", "admin"), await sign_up(deps, "ann")
    elsewhere = _beside(deps, FaultyBus(deps.bus))
    await rate_limits.configure(elsewhere, admin.viewer, holder_id=ann.id, points_per_minute=5)
    await rate_limits.charge(deps, ann.viewer, None, 9)
    with pytest.raises(RateLimitedError):
        rate_limits.require_some(deps, ann.viewer, None)
    # By another process, whose change is read a while later.
    await rate_limits.configure(elsewhere, admin.viewer, holder_id=ann.id, points_per_minute=50)
    monkeypatch.setattr(rate_limits, "_CONFIGS_S", 0.0)
    rate_limits.require_some(deps, ann.viewer, None)
    assert (await rate_limits.spend(deps, ann.viewer, None, 1)) is not None
    monkeypatch.undo()
    # By other roles, which the next request comes with.
    await rate_limits.charge(deps, ann.viewer, None, 99)
    with pytest.raises(RateLimitedError):
        rate_limits.require_some(deps, ann.viewer, None)
    manager = replace(ann.viewer, permissions=frozenset({"accounts:manage"}))
    rate_limits.require_some(deps, manager, None)


async def test_no_limit_keeps_a_manager_from_taking_it_back(api: Api) -> None:
    admin = await api.person("admin")
    roles = {role["name"]: role["id"] for role in await api.run("{ roles { id name } }", admin)}
    for holder in (roles["admin"], admin.viewer.id):
        wish = {"holderId": holder, "pointsPerMinute": 1}
        assert (await api.run(SET, admin, input=wish))["errors"] == []
    budget = await rate_limits.spend(api.deps, admin.viewer, None, 100)
    assert budget is not None
    assert budget.limit == 1000


async def test_a_subscription_pays_for_one_event_and_its_events_tell_of_no_cost(
    deps: Deps,
) -> None:
    ann = await sign_up(deps, "ann")
    engine = Engine(schema.build()._schema, admit=graphql_budget.admit)
    prepared = engine.prepare("subscription { viewerEvents { cursor } }")
    assert isinstance(prepared, Prepared)
    context = Context(deps, ann.viewer, "r", Client(ADDRESS))
    stream: Any = await engine.subscribe(prepared, context)
    event = await anext(stream)
    await stream.aclose()
    assert "extensions" not in event.payload()
    budget = await rate_limits.budget(deps, ann.viewer, ADDRESS)
    assert budget is not None
    assert budget.spent == prepared.points == 2


def test_points_are_weighed_by_what_fields_do() -> None:
    engine = Engine(schema.build()._schema)

    def points(query: str, **variables: Any) -> int:
        prepared = engine.prepare(query, None, variables)
        assert isinstance(prepared, Prepared), prepared
        return prepared.points

    assert points("{ __typename }") == 1
    assert points('{ memorySearch(query: "x", first: 5) { score } }') == 50 + 6
    assert points("{ __schema { queryType { name } } }") == 500
    assert points('{ a: __type(name: "A") { name } b: __type(name: "B") { name } }') == 40
    send = (
        'mutation { messageSend(input: {conversationId: "c", content: "x"}) { errors { code } } }'
    )
    assert points(send) > 100
    paged = "query($n: Int) { memories(first: $n) { nodes { id user { id } } } }"
    # Remembered for each size of the page.
    assert [points(paged, n=n) for n in (1, 10, 1, 0)] == [4, 23, 4, 1]
