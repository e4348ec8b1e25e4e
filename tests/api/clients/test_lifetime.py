"""The documented clients over the end of a sign-in, its renewal, and a deploy of the server."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from tests.api.clients.conftest import PASSWORD, World, browsing, serving
from tests.api.clients.test_browser import CLIENTS, ONE, TWO
from tests.product import Client

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="module")]
_TOKEN_S = 5
# An EventSource renews the sign-in in time by itself.
_PATIENT = [kind for kind in CLIENTS if kind != "event-source"]
_SIGN_IN = """mutation($input: SessionCreateInput!) {
  sessionCreate(input: $input) { session { token } } }"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(
    page: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[World]:
    folder = tmp_path_factory.mktemp("product")
    brief = {"NOOSPHERE_ACCESS_TOKEN_TTL": str(_TOKEN_S)}
    async with serving(page, folder, **brief) as backend, browsing(backend) as opened:
        yield opened


async def refreshed(world: World) -> None:
    """Sign the test itself in anew."""
    world.client.token = None
    given = {"login": world.name, "password": PASSWORD}
    data = await world.client.run(_SIGN_IN, input=given)
    world.client.token = data["sessionCreate"]["session"]["token"]


def everybody(condition: str) -> str:
    """Give what holds when the state of every client of `given[0]` fulfils a condition."""
    return f"given[0].every((kind) => {{ const state = shown.seats[kind]; return {condition}; }})"


async def test_a_sign_in_renewed_over_the_open_socket_keeps_it_open(world: World) -> None:
    await refreshed(world)
    tab, tale, id_ = world.tab, world.teller.tale(ONE), await world.begin()
    await world.sign_in()
    before = world.front.count
    await tab.run("await harness.main(...given)", id_)
    await tab.until("shown.state?.cursor")

    # The first is the sign-in itself; the third comes after the first token's end.
    await tab.until("shown.renewals === 3")
    await refreshed(world)
    answer = await world.send(id_, tale.request)

    await tab.until(
        "shown.state.messages.find(({ id }) => id === given[0])?.content === given[1]",
        answer,
        tale.text,
    )
    assert await tab.run("return harness.problems.concat(harness.shown.problems)") == []
    assert world.front.count == before + 1


async def test_when_a_sign_in_ends_every_client_comes_back_with_a_new_token(world: World) -> None:
    await refreshed(world)
    tab, tale, id_ = world.tab, world.teller.tale(ONE), await world.begin()
    await world.sign_in()
    await tab.run("harness.all(...given)", _PATIENT, id_)
    await tab.until(everybody("state?.cursor"), _PATIENT)
    before = world.front.count

    # Nothing happens in the conversation meanwhile: the streams end, and begin again, in silence.
    await tab.until("shown.closes.length === 3")
    await refreshed(world)
    await world.send(id_, tale.request)

    whole = "state.messages.at(-1)?.content === given[1]"
    await tab.until(everybody(whole), _PATIENT, tale.text)
    assert await tab.run("return harness.shown.closes") == [4403] * 3
    kinds = await tab.run("return harness.told.map(({ kind }) => kind)")
    assert kinds.count("ConversationReset") == len(_PATIENT)
    assert await tab.run("return harness.problems.concat(harness.shown.problems)") == []
    assert world.front.count >= before + 3


async def test_a_sign_in_that_was_revoked_is_told_and_nothing_more_is_asked(world: World) -> None:
    await refreshed(world)
    tab, id_ = world.tab, await world.begin()
    await world.sign_in()
    await tab.run("harness.start(...given)", "graphql-ws", id_)
    await tab.until("shown.state?.cursor")

    client = Client(world.product.url, await tab.run("return harness.session.kept.token"))
    await client.run("mutation { sessionRevoke { errors { message } } }")
    await client.aclose()

    await tab.until("shown.problems.length === 2")
    problems = await tab.run("return harness.shown.problems")
    assert problems[0] == "signed out"
    assert "sign in again" in problems[1]
    assert await tab.run("return harness.shown.closes[0]") == 4403
    assert await tab.run("return harness.session.kept") is None


async def test_a_deploy_in_the_middle_of_an_answer_ends_with_the_right_text(world: World) -> None:
    await refreshed(world)
    tab, tale, id_ = world.tab, world.teller.tale(ONE, TWO), await world.begin()
    await world.sign_in()
    await tab.run("harness.all(...given)", CLIENTS, id_)
    await tab.until(everybody("state?.cursor"), CLIENTS)
    answer = await world.send(id_, tale.request)
    has_begun = "state.messages.find(({ id }) => id === given[1])?.content === given[2]"
    await tab.until(everybody(has_begun), CLIENTS, answer, tale.parts[0])

    assert await asyncio.to_thread(world.product.stop) == 0
    await asyncio.to_thread(world.product.start)
    # Whoever waits for the next attempt is told that it is time.
    await tab.run("dispatchEvent(new Event('online'))")
    tale.go_on()

    is_over = "state.messages.find(({ id }) => id === given[1])?.status === 'COMPLETED'"
    await tab.until(everybody(is_over), CLIENTS, answer)
    await refreshed(world)
    row = await world.row(id_, answer)
    assert row["content"] == tale.text
    texts = await tab.run(
        "return given[0].map((kind) => harness.shown.seats[kind].messages.at(-1).content)", CLIENTS
    )
    assert texts == [tale.text] * len(CLIENTS)
    assert await tab.run("return harness.problems") == []
