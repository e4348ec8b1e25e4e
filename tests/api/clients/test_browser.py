"""Client libraries in a browser, with the code of docs/realtime.md, over a network that breaks."""

from json import dumps

import pytest

from tests.api.clients.conftest import World
from tests.api.following import following

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="module")]

ONE = "Es war einmal 👩🏽‍🚀 eine Reisende, 옛날 옛적에 한 나그네가 살았습니다, and one 🌍 of many"
TWO = "went on while 🚂 nobody was there to listen to it, 아무도 듣지 않아도 이야기는 계속되었다 🌙"
THREE = "until all of them lived happily 🎉 ever after, 그들은 행복하게 살았답니다 🏡."
CLIENTS = [
    "graphql-ws",
    "graphql-sse",
    "graphql-sse-single",
    "event-source",
    "apollo-ws",
    "apollo-http",
    "urql-ws",
    "urql-http",
]
_TOLD = "return harness.told.map(({ kind }) => kind)"
# Those that can tell a connection that died in silence. An EventSource cannot.
WATCHFUL = [kind for kind in CLIENTS if kind != "event-source"]
_ANSWER = "shown.state?.messages.find(({ id }) => id === given[0])"
_PROBLEMS = "return harness.problems.concat(harness.shown.problems)"


@pytest.mark.parametrize("kind", CLIENTS)
async def test_an_answer_survives_a_broken_connection_and_a_reload_of_the_page(
    world: World, kind: str
) -> None:
    tab, tale, id_ = world.tab, world.teller.tale(ONE, TWO, THREE), await world.begin()
    one, two, _ = tale.parts
    await world.sign_in()
    await tab.run("harness.start(...given)", kind, id_)
    await tab.until("shown.state?.cursor")
    answer = await tab.run("return harness.send(...given)", tale.request)
    witness = world.witness(id_)
    async with following(witness):
        await tab.until(f"{_ANSWER}?.content === given[1]", answer, one)
        before = await tab.run("return harness.told.length")

        world.front.cut()
        tale.go_on()
        await witness.until_written(answer, len(one + two))
        world.front.mend()
        await tab.until(f"{_ANSWER}.content === given[1]", answer, one + two)

    missed = await tab.run("return harness.told.slice(...given)", before)
    assert missed == [{"kind": "MessageDelta", "id": answer, "offset": len(one), "text": two}]
    assert await tab.run(_PROBLEMS) == []

    await tab.open()
    await tab.run("harness.start(...given)", kind, id_)
    tale.go_on()
    await tab.until(f"{_ANSWER}?.status === 'COMPLETED'", answer)

    kinds = await tab.run(_TOLD)
    assert set(kinds) == {"MessageDelta", "MessageCompleted"}
    assert await tab.run(_PROBLEMS) == []
    shown = await tab.run(f"const {{ shown }} = harness; return {_ANSWER}.content", answer)
    row = await world.row(id_, answer)
    assert shown == row["content"] == tale.text
    assert row["status"] == "COMPLETED"


@pytest.mark.parametrize("kind", WATCHFUL)
async def test_a_connection_that_died_in_silence_is_replaced_when_the_network_is_back(
    world: World, kind: str
) -> None:
    tab, tale, id_ = world.tab, world.teller.tale(ONE, TWO), await world.begin()
    one, two = tale.parts
    await world.sign_in()
    await tab.run("harness.start(...given)", kind, id_)
    await tab.until("shown.state?.cursor")
    answer = await tab.run("return harness.send(...given)", tale.request)
    await tab.until(f"{_ANSWER}?.content === given[1]", answer, one)

    world.front.freeze()
    tale.go_on()
    await tab.run("dispatchEvent(new Event('online'))")

    await tab.until(f"{_ANSWER}.content === given[1]", answer, one + two)
    await tab.until(f"{_ANSWER}.status === 'COMPLETED'", answer)
    kinds = await tab.run(_TOLD)
    assert kinds.count("ConversationReset") == 1
    assert await tab.run(_PROBLEMS) == []


async def test_clients_come_back_when_the_proxy_before_the_server_has_answered_errors(
    world: World,
) -> None:
    tab, tale, id_ = world.tab, world.teller.tale(ONE, TWO), await world.begin()
    one, two = tale.parts
    await world.sign_in()
    await tab.run("harness.all(...given)", CLIENTS, id_)
    everybody = "given[0].every((kind) => (({}) => {})(shown.seats[kind] ?? {{ messages: [] }}))"
    await tab.until(everybody.format("{ cursor }", "cursor"), CLIENTS)
    await world.send(id_, tale.request)
    has = everybody.format("{ messages }", "messages.at(-1)?.content === given[1]")
    await tab.until(has, CLIENTS, one)

    # Every client, and at least one of them twice.
    await world.front.refuse(len(CLIENTS) + 1)
    tale.go_on()
    world.front.mend()
    await tab.run("dispatchEvent(new Event('online'))")

    await tab.until(has, CLIENTS, one + two)
    assert (await tab.run(_TOLD)).count("ConversationReset") == len(CLIENTS)
    assert await tab.run(_PROBLEMS) == []


async def test_a_cursor_the_server_cannot_read_leads_to_a_new_beginning(world: World) -> None:
    tab, id_ = world.tab, await world.begin()
    old = {"id": "msg_old", "role": "USER", "status": "COMPLETED", "content": "Hello"}
    stale = dumps({"cursor": "from another version", "messages": [old]})
    await world.sign_in()
    for kind in CLIENTS:
        await tab.run("sessionStorage.setItem(...given)", f"conversation:{id_}", stale)
        before = await tab.run("return harness.told.length")
        await tab.run("harness.start(...given)", kind, id_)
        await tab.until("told.length > given[0]", before)
        await tab.run("harness.leave()")
        assert (await tab.run(_TOLD))[before:] == ["ConversationReset"], kind
        assert await tab.run("return harness.shown.state.messages") == [], kind
    assert await tab.run(_PROBLEMS) == []


async def test_what_one_may_not_see_is_told_and_not_asked_for_again(world: World) -> None:
    tab = world.tab
    await world.sign_in()
    for kind in CLIENTS:
        await tab.run("harness.shown.problems.length = 0")
        before = world.front.count
        await tab.run("harness.start(...given)", kind, "cnv_nothing")
        await tab.until("shown.problems.length")
        problems = await tab.run("harness.leave(); return harness.shown.problems")
        assert len(problems) == 1, (kind, problems)
        assert "There is no such conversation." in problems[0], kind
        # Reserving a stream, opening it and sending the operation are requests of their own.
        requests = 3 if kind == "graphql-sse-single" else 1
        assert world.front.count == before + requests, kind


async def test_a_page_of_another_origin_is_let_in_when_it_is_listed(world: World) -> None:
    tab, id_ = world.tab, await world.begin()
    given = (f"{world.product.url}/graphql", world.client.token, id_)
    await tab.open()
    await tab.run("harness.away(...given)", *given)
    kinds = ["graphql-ws", "graphql-sse", "event-source"]
    await tab.until("given[0].every((kind) => shown.seats[kind]?.cursor)", kinds)
    assert await tab.run(_PROBLEMS) == []

    # The same page, under a name that is not listed.
    await tab.open(world.front.url.replace("127.0.0.1", "localhost"))
    await tab.run("harness.away(...given)", *given)
    await tab.until("shown.closes.length")
    assert set(await tab.run("return harness.shown.closes")) == {1006}
    assert await tab.run("return harness.shown.seats") == {}
    assert any("CORS policy" in line for line in await tab.said())
