"""Sessions and streams that need a server which misbehaves on demand: the stand-in."""

import time
from collections.abc import Callable

import pytest
from selenium.webdriver import Chrome

from tests.api.graphiql.conftest import StandIn
from tests.api.graphiql.driver import PATIENCE_S, QUERY, GraphiQL

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]

Serve = Callable[..., StandIn]


def _signed_in(browser: Chrome, standin: StandIn) -> GraphiQL:
    graphiql = GraphiQL(browser, standin.url).open()
    graphiql.run()
    graphiql.response("refreshToken")
    graphiql.account()
    return graphiql


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _watch(graphiql: GraphiQL) -> None:
    graphiql.tab("Converse")
    graphiql.run()
    graphiql.response("conversationCreate")
    graphiql.tab("Watch")
    graphiql.run()
    graphiql.stream("Watch", "live")


def test_a_token_is_renewed_before_it_expires(browser: Chrome, serve: Serve) -> None:
    standin = serve(token_lifetime_s=6)
    graphiql = _signed_in(browser, standin)
    first = graphiql.stored("noosphere:session")
    _until(lambda: standin.state.refreshes >= 2)
    _until(lambda: graphiql.stored("noosphere:session")["token"] != first["token"])
    graphiql.write(QUERY, "{ viewer { username } }")
    graphiql.run()
    graphiql.response(f'"{first["account"]["username"]}"')
    # No request ever came with a token that had run out: the page was ahead of it.
    assert standin.state.stale_requests == 0
    assert standin.state.reused_refresh_tokens == 0


def test_two_browser_tabs_share_one_refresh(browser: Chrome, serve: Serve) -> None:
    standin = serve(token_lifetime_s=6)
    graphiql = _signed_in(browser, standin)
    browser.switch_to.new_window("tab")
    graphiql.open()
    graphiql.account()
    _until(lambda: standin.state.refreshes >= 3)
    assert standin.state.reused_refresh_tokens == 0
    assert graphiql.stored("noosphere:session") is not None


def test_a_page_opened_again_has_the_tabs_it_had(browser: Chrome, serve: Serve) -> None:
    graphiql = _signed_in(browser, serve())
    before = graphiql.tabs()
    # Tabs are kept half a second after the last change.
    graphiql.until("localStorage['graphiql:tabState']")
    for _ in range(2):
        browser.switch_to.new_window("tab")
        graphiql.open()
        graphiql.until("document.querySelectorAll('.graphiql-tab').length > 0")
        assert graphiql.tabs() == before


def test_a_session_that_ended_elsewhere_is_said_and_forgotten(
    browser: Chrome, serve: Serve
) -> None:
    standin = serve()
    graphiql = _signed_in(browser, standin)
    standin.state.tokens.clear()
    standin.state.refresh_tokens.clear()
    graphiql.open()
    graphiql.until("document.querySelector('.noo-notice')?.textContent.includes('Sign in again')")
    assert graphiql.stored("noosphere:session") is None


def test_signing_out_in_one_tab_signs_out_the_other(browser: Chrome, serve: Serve) -> None:
    standin = serve()
    graphiql = _signed_in(browser, standin)
    first = browser.current_window_handle
    browser.switch_to.new_window("tab")
    graphiql.open()
    graphiql.account()
    graphiql.press("Sign out")
    graphiql.find(".noo-form")
    browser.switch_to.window(first)
    graphiql.find(".noo-form")


def test_the_token_goes_to_both_transports(browser: Chrome, serve: Serve) -> None:
    standin = serve()
    graphiql = _signed_in(browser, standin)
    token = graphiql.stored("noosphere:session")["token"]
    _watch(graphiql)
    assert standin.state.http_authorizations[-1] == f"Bearer {token}"
    assert standin.state.socket_authorizations[-1] == f"Bearer {token}"


def test_a_header_typed_by_hand_wins_over_the_session(browser: Chrome, serve: Serve) -> None:
    standin = serve()
    graphiql = _signed_in(browser, standin)
    graphiql.write("request-headers.json", '{"Authorization": "Bearer other", "X-Mine": "1"}')
    graphiql.write(QUERY, "{ viewer { id } }")
    graphiql.run()
    graphiql.response('"viewer": null')
    assert standin.state.http_authorizations[-1] == "Bearer other"


def test_a_cut_connection_resumes_without_gap_or_duplicate(browser: Chrome, serve: Serve) -> None:
    standin = serve()
    graphiql = _signed_in(browser, standin)
    _watch(graphiql)
    graphiql.tab("RunCode")
    graphiql.run()
    graphiql.event("MessageCompleted")
    seen = len(standin.state.only_log().events)
    standin.cut_sockets()
    graphiql.until(
        "document.querySelector('.noo-chip[data-stream=Watch]').dataset.status !== 'live'"
    )
    graphiql.run()
    _until(lambda: standin.state.resumed_after[-1] == f"c{seen}")
    _until(lambda: len(standin.state.only_log().events) >= 2 * seen)
    graphiql.stream("Watch", "live", at_least=2 * seen)
    graphiql.tab("Watch")
    events = graphiql.response(f'"c{2 * seen}"')["events"]
    cursors = [event["conversationEvents"]["cursor"] for event in events]
    assert cursors == [f"c{number}" for number in range(1, 2 * seen + 1)]


def test_a_socket_refused_for_its_token_comes_back_with_a_new_one(
    browser: Chrome, serve: Serve
) -> None:
    standin = serve()
    graphiql = _signed_in(browser, standin)
    _watch(graphiql)
    old = graphiql.stored("noosphere:session")["token"]
    del standin.state.tokens[old]
    standin.cut_sockets(code=4403)
    _until(lambda: standin.state.refreshes == 1)
    graphiql.stream("Watch", "live")
    assert standin.state.socket_authorizations[-1] not in {None, f"Bearer {old}"}
