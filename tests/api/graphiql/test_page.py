"""GraphiQL in a browser against the product, as a visitor meets it."""

import itertools
import re
import secrets
from urllib.parse import urlsplit

import pytest
from graphql import build_schema, parse, validate

import schema
from tests.api.graphiql.driver import QUERY, RESPONSE, VARIABLES, GraphiQL

pytestmark = [pytest.mark.browser, pytest.mark.timeout(600)]

EXAMPLES = ["Register", "Converse", "Watch", "RunCode", "Remember", "Plan", "Sandbox"]


def _sign_in(graphiql: GraphiQL) -> str:
    """Register a new account by the first example, and give its user name."""
    graphiql.tab("Register")
    graphiql.run()
    assert graphiql.response("refreshToken")["data"]["userRegister"]["errors"] == []
    return graphiql.account()


def _write_a_mistake(graphiql: GraphiQL) -> None:
    """Write a query of an unknown field, and wait until the worker of the editor marks it."""
    graphiql.write(QUERY, "{ viewr { id } }")
    graphiql.until(
        "__MONACO.editor.getModelMarkers({}).some((one) => "
        f"one.resource.path.endsWith('{QUERY}') && one.message.includes('viewr'))"
    )


def test_a_typed_query_runs_and_shows_its_result(graphiql: GraphiQL) -> None:
    graphiql.type_query("{ viewer { id } }")
    graphiql.run()
    assert graphiql.response()["data"] == {"viewer": None}


def test_a_mistake_is_marked_by_the_editor_before_it_is_sent(graphiql: GraphiQL) -> None:
    _write_a_mistake(graphiql)


def test_the_page_asks_nobody_but_its_own_server(graphiql: GraphiQL, server_url: str) -> None:
    _sign_in(graphiql)
    graphiql.tab("Converse")
    graphiql.run()
    graphiql.response("conversationCreate")
    graphiql.tab("Watch")
    graphiql.run()
    graphiql.stream("Watch", "live")
    # Formatting loads the formatter, and hovering the docs renders Markdown.
    graphiql.click("button[aria-label^='Prettify']")
    graphiql.click("button[aria-label='Show Documentation Explorer']")
    graphiql.find(".graphiql-doc-explorer")
    _write_a_mistake(graphiql)
    urls = [url for url in graphiql.requests() if not url.startswith(("data:", "blob:", "chrome"))]
    assert {urlsplit(url).netloc for url in urls} == {urlsplit(server_url).netloc}
    for worker in ("editor.worker", "json.worker", "graphql.worker", "codicon"):
        assert any(f"/graphiql/assets/{worker}" in url for url in urls), worker
    assert any(url.startswith("ws://") for url in urls)
    assert graphiql.complaints() == []


def test_the_helper_registers_signs_out_and_signs_in_again(graphiql: GraphiQL) -> None:
    username, password = f"grace{secrets.token_hex(4)}", secrets.token_urlsafe(16)
    graphiql.press("Register", within=".noo-switch")
    graphiql.fill_form(username=username, email=f"{username}@example.org", password=password)
    assert graphiql.account() == username
    graphiql.write(QUERY, "{ viewer { username } }")
    graphiql.run()
    assert graphiql.response()["data"] == {"viewer": {"username": username}}

    graphiql.press("Sign out")
    graphiql.find(".noo-form input[name=login]")
    assert graphiql.stored("noosphere:session") is None
    graphiql.run()
    graphiql.response('"viewer": null')

    graphiql.fill_form(login=username, password="not the password")
    graphiql.find(".noo-fault")
    assert graphiql.stored("noosphere:session") is None
    graphiql.chromium.execute_script("document.querySelector('.noo-form').reset()")
    graphiql.fill_form(login=username, password=password)
    assert graphiql.account() == username
    graphiql.run()
    graphiql.response(f'"{username}"')
    assert password not in graphiql.chromium.execute_script("return JSON.stringify(localStorage)")


def test_a_reload_keeps_the_account_the_tabs_and_the_variables(graphiql: GraphiQL) -> None:
    username = _sign_in(graphiql)
    variables = graphiql.text_of(VARIABLES)
    graphiql.tab("RunCode")
    graphiql.write(QUERY, "query Mine { viewer { username } }")
    # Tabs are kept half a second after the last change.
    graphiql.until("localStorage['graphiql:tabState'].includes('query Mine')")
    graphiql.open()
    assert graphiql.account() == username
    assert graphiql.tabs() == [
        "Register",
        "Converse",
        "Watch",
        "Mine",
        "Remember",
        "Plan",
        "Sandbox",
    ]
    assert graphiql.text_of(QUERY) == "query Mine { viewer { username } }"
    graphiql.tab("Register")
    assert graphiql.text_of(VARIABLES) == variables


def test_an_id_nobody_has_created_yet_is_asked_for(graphiql: GraphiQL) -> None:
    graphiql.tab("RunCode")
    graphiql.run()
    message = graphiql.response("errors")["errors"][0]["message"]
    assert "$conversationId" in message
    assert "Conversation" in message


def test_the_examples_can_be_opened_again(graphiql: GraphiQL) -> None:
    graphiql.write(QUERY, "query Mine { viewer { id } }")
    graphiql.until("document.querySelector('.graphiql-tab').textContent.includes('Mine')")
    graphiql.press("Open the examples again")
    # The first of the new tabs comes to the front.
    graphiql.until("document.querySelectorAll('.graphiql-tab')[7]?.matches('.graphiql-tab-active')")
    assert graphiql.tabs() == ["Mine", *EXAMPLES[1:], *EXAMPLES]
    assert "userRegister" in graphiql.text_of(QUERY)
    graphiql.run()
    assert graphiql.response("refreshToken")["data"]["userRegister"]["errors"] == []


def test_every_example_fits_the_schema(graphiql: GraphiQL) -> None:
    # Tabs are kept half a second after the page has opened.
    graphiql.until("localStorage['graphiql:tabState']")
    tabs = graphiql.stored("graphiql:tabState")["tabs"]
    assert [tab["title"] for tab in tabs] == EXAMPLES
    contract = build_schema(schema.build().as_str())
    for tab in tabs:
        assert validate(contract, parse(tab["query"])) == [], tab["title"]


def _converse(graphiql: GraphiQL) -> str:
    """Sign in, create a conversation by the second example, and give its id."""
    _sign_in(graphiql)
    graphiql.tab("Converse")
    graphiql.run()
    created = graphiql.response("conversationCreate")["data"]["conversationCreate"]
    assert created["errors"] == []
    return str(created["conversation"]["id"])


def _completed(graphiql: GraphiQL) -> list[str]:
    return [text for kind, text, _ in graphiql.events() if kind == "MessageCompleted"]


def test_the_example_conversation_streams_its_answer(graphiql: GraphiQL) -> None:
    conversation = _converse(graphiql)
    graphiql.tab("Watch")
    graphiql.run()
    graphiql.stream("Watch", "live", at_least=1)
    assert conversation in graphiql.find(".noo-filled").text

    graphiql.tab("RunCode")
    graphiql.run()
    assert graphiql.response("messageSend")["data"]["messageSend"]["errors"] == []
    graphiql.event("MessageCompleted")
    kinds = [kind for kind, _, _ in graphiql.events()]
    assert {"MessageAdded", "ToolCallStarted", "ToolCallFinished", "MessageDelta"} <= set(kinds)
    assert "1024" in _completed(graphiql)[0]
    # The stream went on behind the other tab, whose response shows all of it on return.
    graphiql.tab("Watch")
    events = graphiql.response("MessageCompleted")["events"]
    cursors = [event["conversationEvents"]["cursor"] for event in events]
    assert len(set(cursors)) == len(cursors) >= 6
    assert graphiql.complaints() == []


def test_the_example_of_memory_recalls_in_a_new_conversation(graphiql: GraphiQL) -> None:
    conversation = _converse(graphiql)
    graphiql.tab("Remember")
    graphiql.run_all()
    asked = graphiql.response("AskUnits")
    assert asked["Remember"]["messageSend"]["errors"] == []
    assert asked["NewTopic"]["conversationCreate"]["conversation"]["id"] != conversation
    graphiql.choose_stream("WatchTopic")
    graphiql.event("MessageCompleted")
    (answer,) = _completed(graphiql)
    assert "metric" in answer.lower()
    assert "citedMemories" in answer


def test_the_example_plan_is_a_diamond_and_completes(graphiql: GraphiQL) -> None:
    _sign_in(graphiql)
    graphiql.tab("Plan")
    graphiql.run_all()
    steps = graphiql.response("WatchPlan")["Plan"]["planCreate"]["plan"]["steps"]
    depends = {
        step["orderIndex"]: sorted(one["orderIndex"] for one in step["dependsOn"]) for step in steps
    }
    assert depends == {0: [], 1: [0], 2: [0], 3: [1, 2]}
    graphiql.stream("WatchPlan", "done")
    graphiql.choose_stream("WatchPlan")
    graphiql.event("PlanExecutionFinished")
    events = graphiql.events()
    # What had finished before the stream opened is in the snapshot it begins with.
    assert events[0][0] == "PlanExecutionReset"
    finished = [text for kind, text, _ in events if kind == "PlanStepFinished"]
    assert all("COMPLETED" in text for text in finished)
    pattern = r"status COMPLETED, step orderIndex (\d)"
    snapshot = {int(index) for index in re.findall(pattern, events[0][1])}
    followed = {int(text.split("orderIndex ")[1][0]) for text in finished}
    assert snapshot | followed == {0, 1, 2, 3}
    assert len(followed) == len(finished)
    assert [text for text in finished if "Compare" in text and "True" in text]
    assert "COMPLETED" in events[-1][1]


def test_the_example_loop_prints_its_lines_one_after_the_other(graphiql: GraphiQL) -> None:
    _sign_in(graphiql)
    graphiql.tab("Sandbox")
    graphiql.run_all()
    graphiql.response("WatchOutput")
    graphiql.stream("WatchOutput", "done")
    graphiql.choose_stream("WatchOutput")
    graphiql.event("SandboxExecutionExited")
    events = graphiql.events()
    # What was printed before the stream opened may be in a snapshot it begins with.
    output = "\n".join(text for _, text, _ in events[:-1])
    positions = [output.find(f"line {number}") for number in range(1, 11)]
    assert -1 not in positions
    assert all(left < right for left, right in itertools.pairwise(positions))
    # The loop takes two seconds: lines that came as they were printed came at different times.
    assert len({at for kind, _, at in events if kind == "SandboxOutputChunk"}) >= 3
    assert "exitCode 0" in events[-1][1]


def test_stop_ends_a_stream_and_a_change_of_tabs_does_not(graphiql: GraphiQL) -> None:
    _sign_in(graphiql)
    graphiql.tab("Converse")
    graphiql.run()
    graphiql.response("conversationCreate")
    graphiql.tab("Watch")
    graphiql.run()
    graphiql.stream("Watch", "live")
    graphiql.tab("Converse")
    graphiql.stream("Watch", "live")
    graphiql.tab("Watch")
    graphiql.stop()
    graphiql.stream("Watch", "stopped")
    graphiql.press("Remove", within=".noo-live-head")
    graphiql.until("!document.querySelector('.noo-live')")
    assert "stopped" in graphiql.text_of(RESPONSE) or "live" in graphiql.text_of(RESPONSE)


@pytest.mark.parametrize("theme", ["dark", "light"])
def test_it_follows_the_system_in_dark_and_light(graphiql: GraphiQL, theme: str) -> None:
    features = [{"name": "prefers-color-scheme", "value": theme}]
    graphiql.chromium.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    graphiql.open()
    shade = graphiql.chromium.execute_script(
        "return getComputedStyle(document.querySelector('.graphiql-container')).backgroundColor"
    )
    brightness = sum(int(part) for part in shade.strip("rgb()").split(",")[:3]) / 3
    assert brightness < 80 if theme == "dark" else brightness > 240


def test_on_a_phone_nothing_lies_beside_the_screen(graphiql: GraphiQL) -> None:
    metrics = {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}
    graphiql.chromium.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    graphiql.chromium.execute_script("localStorage.clear()")
    graphiql.open()
    graphiql.run()
    graphiql.response("userRegister")
    boxes = graphiql.chromium.execute_script(
        "return ['.graphiql-execute-button', '.graphiql-editors', '.result-window'].map("
        "(one) => { const box = document.querySelector(one).getBoundingClientRect();"
        " return [box.left, box.right, box.top, box.bottom]; })"
    )
    for left, right, top, bottom in boxes:
        assert 0 <= left < right <= 390
        assert 0 <= top < bottom <= 844
