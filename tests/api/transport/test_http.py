"""GraphQL over HTTP beyond what the audits ask."""

import asyncio
import json

import httpx
import pytest

from app.graphql_media import choose
from tests.api.transport.conftest import Server, serving, until

RESPONSE_JSON = "application/graphql-response+json"
JSON = "application/json"


async def test_a_query_answers_with_data_extensions_and_request_id(server: Server) -> None:
    response = await server.post(
        "query Q($name: String!) { hello(name: $name) }",
        variables={"name": "Ann"},
        operationName="Q",
        headers={"x-request-id": "req-1"},
    )
    assert response.status_code == 200
    assert response.headers["x-request-id"] == "req-1"
    assert response.headers["content-type"] == "application/json; charset=utf-8"
    assert response.json() == {
        "data": {"hello": "Hello, Ann!"},
        "extensions": {"requestId": "req-1"},
    }


async def test_a_request_id_unfit_for_logs_is_replaced(server: Server) -> None:
    response = await server.post("{ hello }", headers={"x-request-id": "a b\tc"})
    assert len(response.headers["x-request-id"]) == 32
    other = await server.post("{ hello }")
    assert other.headers["x-request-id"] != response.headers["x-request-id"]


async def test_bugs_are_masked_and_logged_with_the_request_id(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    response = await server.post(
        "{ broken hello }", headers={"x-request-id": "req-9", "accept": RESPONSE_JSON}
    )
    assert response.status_code == 200
    body = response.json()
    assert body["data"] == {"broken": None, "hello": "Hello, world!"}
    (error,) = body["errors"]
    assert error["message"] == (
        "Something went wrong on our side. Quote request id req-9 when you report it."
    )
    assert error["extensions"] == {"code": "INTERNAL", "requestId": "req-9"}
    assert error["path"] == ["broken"]
    assert error["locations"] == [{"line": 1, "column": 3}]
    assert "hunter2" not in response.text
    (record,) = [r for r in caplog.records if r.name == "schema.execution.errors"]
    assert "req-9" in record.getMessage()
    assert record.exc_info is not None
    assert "hunter2" in str(record.exc_info[1])


async def test_a_bug_in_a_synchronous_non_null_root_field_nulls_the_data(server: Server) -> None:
    response = await server.post("{ brokenSync }", headers={"accept": RESPONSE_JSON})
    assert response.status_code == 200
    assert response.json()["data"] is None
    assert response.json()["errors"][0]["extensions"]["code"] == "INTERNAL"


async def test_refusals_of_services_are_told_as_they_are(server: Server) -> None:
    response = await server.post("{ grouped limited unmended }")
    told = {error["path"][0]: error for error in response.json()["errors"]}
    for field in ("grouped", "limited"):
        assert told[field]["message"] == "Too many attempts: wait a little."
        assert told[field]["extensions"] == {"code": "RATE_LIMITED", "retryAfter": 6.2}
    assert told["unmended"]["extensions"] == {"code": "INVALID"}
    assert response.status_code == 200
    assert response.headers["retry-after"] == "7"


async def test_an_operation_that_only_met_a_rate_limit_is_429_for_those_who_ask(
    server: Server,
) -> None:
    response = await server.post("{ limitedAlways }", headers={"accept": RESPONSE_JSON})
    assert response.status_code == 429
    assert response.headers["retry-after"] == "7"
    legacy = await server.post("{ limitedAlways }", headers={"accept": JSON})
    assert legacy.status_code == 200
    assert legacy.headers["retry-after"] == "7"


@pytest.mark.parametrize(
    ("token", "status", "code"),
    [("bad", 401, "UNAUTHENTICATED"), ("busy", 429, "RATE_LIMITED"), ("bug", 500, "INTERNAL")],
)
@pytest.mark.parametrize("accept", [JSON, RESPONSE_JSON])
async def test_a_context_that_cannot_be_made_refuses_the_request(
    server: Server, token: str, status: int, code: str, accept: str
) -> None:
    headers = {"authorization": f"Bearer {token}", "accept": accept}
    response = await server.post("mutation { note(text: 1) }", headers=headers)
    assert response.status_code == status
    assert response.headers["content-type"].startswith(accept)
    assert "data" not in response.json()
    assert response.json()["errors"][0]["extensions"]["code"] == code
    assert ("www-authenticate" in response.headers) == (status == 401)
    assert response.headers.get("retry-after") == ("5" if status == 429 else None)
    assert "hunter2" not in response.text
    assert server.probe.mutations == []


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("nan", {"value": None}),
        ("surrogate", {"text": "a\ufffdb", "fine": "😀"}),
        ("big", {"number": 2**80}),
    ],
)
async def test_awkward_values_still_make_valid_json(
    server: Server, kind: str, value: object
) -> None:
    response = await server.post("query($k: String!) { data(kind: $k) }", variables={"k": kind})
    assert json.loads(response.content)["data"]["data"] == value


async def test_a_value_without_json_form_is_a_masked_bug(server: Server) -> None:
    response = await server.post('{ data(kind: "object") }')
    assert response.status_code == 500
    assert response.json()["errors"][0]["extensions"]["code"] == "INTERNAL"


@pytest.mark.parametrize(
    "body",
    [
        b'{"query": "{ hello(name: \\"\xff\\") }"}',
        b'{"query": "{ hello }", "variables": {"a": "\\ud83d"}}',
        b'{"query": "{ hello }',
        b'"{ hello }"',
        b"",
    ],
)
async def test_bodies_that_are_no_clean_json_are_400(server: Server, body: bytes) -> None:
    async with server.client() as client:
        response = await client.post(
            server.url, content=body, headers={"content-type": "application/json"}
        )
    assert response.status_code == 400
    assert response.json()["errors"][0]["extensions"]["code"] == "BAD_REQUEST"


async def test_a_surrogate_escaped_in_the_document_is_a_syntax_error(server: Server) -> None:
    response = await server.post(r'{ hello(name: "\uD83D") }', headers={"accept": RESPONSE_JSON})
    assert response.status_code == 400
    assert response.json()["errors"][0]["extensions"]["code"] == "GRAPHQL_PARSE_FAILED"


async def test_batches_are_refused_with_advice(server: Server) -> None:
    async with server.client() as client:
        response = await client.post(server.url, json=[{"query": "{ hello }"}])
    assert response.status_code == 400
    assert "one operation per request" in response.json()["errors"][0]["message"]


async def test_automatic_persisted_queries_are_declined_in_their_own_words(server: Server) -> None:
    async with server.client() as client:
        response = await client.post(
            server.url,
            json={"extensions": {"persistedQuery": {"version": 1, "sha256Hash": "0" * 64}}},
        )
    (error,) = response.json()["errors"]
    assert error["message"] == "PersistedQueryNotSupported"
    assert error["extensions"]["code"] == "PERSISTED_QUERY_NOT_SUPPORTED"


@pytest.mark.parametrize(
    "content_type",
    [
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "application/json; charset=latin-1",
    ],
)
async def test_mutations_cannot_come_as_what_pages_may_send_anywhere(
    server: Server, content_type: str
) -> None:
    async with server.client() as client:
        response = await client.post(
            server.url,
            content=b'{"query": "mutation { note(text: \\"forged\\") }"}',
            headers={"content-type": content_type},
        )
    assert response.status_code == 415
    assert server.probe.mutations == []


async def test_get_runs_queries_but_no_mutations_or_subscriptions(server: Server) -> None:
    async with server.client() as client:
        query = await client.get(server.url, params={"query": "{ hello }"})
        assert query.json()["data"] == {"hello": "Hello, world!"}
        mutation = await client.get(server.url, params={"query": 'mutation { note(text: "x") }'})
        assert mutation.status_code == 405
        assert mutation.headers["allow"] == "POST"
        stream = await client.get(server.url, params={"query": "subscription { count }"})
        assert stream.status_code == 400
        assert "graphql-transport-ws" in stream.json()["errors"][0]["message"]
        broken = await client.get(server.url + "?query=%ff")
        assert broken.status_code == 400
        variables = await client.get(server.url, params={"query": "{ hello }", "variables": "{"})
        assert variables.status_code == 400
    assert server.probe.mutations == []


async def test_a_get_from_another_site_needs_a_header_pages_cannot_send_freely() -> None:
    async with (
        serving(http={"allowed_origins": ["https://app.example"]}) as server,
        server.client(params={"query": "{ hello }"}) as client,
    ):
        url = server.url
        cross = {"sec-fetch-site": "cross-site"}
        assert (await client.get(url, headers=cross)).status_code == 403
        evil = {**cross, "origin": "https://evil.example"}
        assert (await client.get(url, headers=evil)).status_code == 403
        listed = {**cross, "origin": "https://app.example"}
        assert (await client.get(url, headers=listed)).status_code == 200
        asked = {**evil, "x-graphql-preflight": "1"}
        assert (await client.get(url, headers=asked)).status_code == 200
        own = {"sec-fetch-site": "same-origin"}
        assert (await client.get(url, headers=own)).status_code == 200


async def test_other_methods_and_media_types_are_refused(server: Server) -> None:
    async with server.client() as client:
        allowed = "GET, POST, PUT, DELETE"
        patch = await client.patch(server.url, json={"query": "{ hello }"})
        assert (patch.status_code, patch.headers["allow"]) == (405, allowed)
        options = await client.options(server.url)
        assert (options.status_code, options.headers["allow"]) == (204, allowed)
        image = await client.post(
            server.url, json={"query": "{ hello }"}, headers={"accept": "image/png"}
        )
        assert image.status_code == 406
        page = await client.get(server.url, headers={"accept": "text/html"})
        assert page.status_code == 406
        packed = await client.post(
            server.url,
            content=b"{}",
            headers={"content-type": "application/json", "content-encoding": "gzip"},
        )
        assert packed.status_code == 415


async def test_browsers_get_graphiql() -> None:
    async with (
        serving(http={"graphiql_html": lambda: b"<html>page</html>"}) as server,
        server.client() as client,
    ):
        accept = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"
        page = await client.get(server.url, headers={"accept": accept})
        assert page.status_code == 200
        assert page.text == "<html>page</html>"
        assert page.headers["content-type"] == "text/html; charset=utf-8"
        assert page.headers["x-frame-options"] == "DENY"


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ("", JSON),
        ("*/*", JSON),
        ("application/*", JSON),
        (f"{RESPONSE_JSON}, {JSON};q=0.9", RESPONSE_JSON),
        (f"{JSON}, {RESPONSE_JSON}", JSON),
        (f"{JSON};q=0.5, {RESPONSE_JSON};q=0.7", RESPONSE_JSON),
        (f"{RESPONSE_JSON}; charset=utf-8", RESPONSE_JSON),
        (f"{RESPONSE_JSON}, */*;q=0.1", RESPONSE_JSON),
        (f"{RESPONSE_JSON};q=0, */*", JSON),
        ("text/html, application/json", JSON),
        ("text/html", "text/html"),
        (f"{JSON};q=0", None),
        ("image/png", None),
        (f"{JSON};q=x", None),
    ],
)
def test_media_types_are_negotiated_by_weight(accept: str, expected: str | None) -> None:
    assert choose(accept, allows_html=True).single == expected


async def _send_raw(port: int, head: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"POST /graphql HTTP/1.1\r\nHost: t\r\nContent-Type: application/json\r\n" + head)
    await writer.drain()
    return reader, writer


async def test_an_announced_body_too_large_is_refused_before_it_is_sent() -> None:
    async with serving(http={"max_body_bytes": 1000}) as server:
        reader, writer = await _send_raw(server.port, b"Content-Length: 1001\r\n\r\n")
        async with asyncio.timeout(60):
            assert b" 413 " in await reader.readline()
        writer.close()
        exact = await server.post("{ hello }", operationName=None)
        assert exact.status_code == 200


async def test_an_unannounced_body_too_large_is_refused_while_it_is_read() -> None:
    async with serving(http={"max_body_bytes": 1000}) as server:
        reader, writer = await _send_raw(server.port, b"Transfer-Encoding: chunked\r\n\r\n")
        chunk = b"258\r\n" + b" " * 600 + b"\r\n"
        writer.write(chunk)
        await writer.drain()
        writer.write(chunk)  # The last chunk never comes: the answer must not wait for it.
        async with asyncio.timeout(60):
            assert b" 413 " in await reader.readline()
        writer.close()


async def test_a_body_that_never_comes_is_408() -> None:
    async with serving(http={"body_timeout_s": 0.05}) as server:
        reader, writer = await _send_raw(server.port, b"Content-Length: 100\r\n\r\n")
        async with asyncio.timeout(60):
            assert b" 408 " in await reader.readline()
        writer.close()


async def test_a_query_whose_client_leaves_is_cancelled(server: Server) -> None:
    async with server.client() as client:
        request = asyncio.ensure_future(client.post(server.url, json={"query": "{ wait }"}))
        await asyncio.wait_for(server.probe.entered.wait(), 60)
        request.cancel()
        with pytest.raises(asyncio.CancelledError):
            await request
    await asyncio.wait_for(server.probe.cancelled.wait(), 60)


async def test_a_mutation_whose_client_leaves_is_finished(server: Server) -> None:
    async with server.client() as client:
        query = 'mutation { slowNote(text: "kept") }'
        request = asyncio.ensure_future(client.post(server.url, json={"query": query}))
        await asyncio.wait_for(server.probe.entered.wait(), 60)
        request.cancel()
        with pytest.raises(asyncio.CancelledError):
            await request
    server.probe.gate.set()
    await asyncio.wait_for(server.probe.finished.wait(), 60)
    assert server.probe.mutations == ["kept"]


async def test_a_slow_query_that_is_watched_still_answers(server: Server) -> None:
    async with server.client() as client:
        request = asyncio.ensure_future(client.post(server.url, json={"query": "{ wait }"}))
        await asyncio.wait_for(server.probe.entered.wait(), 60)
        loop = asyncio.get_running_loop()
        loop.call_later(0.2, server.probe.gate.set)  # Past the patience of the watcher.
        response = await request
        assert response.json()["data"] == {"wait": "done"}
        again = await client.post(server.url, json={"query": "{ hello }"})
        assert again.status_code == 200


@pytest.mark.parametrize("query", ["{ wait }", 'mutation { slowNote(text: "late") }'])
async def test_an_operation_past_its_time_is_stopped(query: str) -> None:
    async with serving(http={"timeout_s": 0.1}) as server:
        response = await server.post(query)
        (error,) = response.json()["errors"]
        assert error["extensions"]["code"] == "TIMED_OUT"
        assert "0.1 seconds" in error["message"]
        assert server.probe.mutations == []
        assert server.probe.cancelled.is_set() == (query == "{ wait }")


async def test_a_sign_in_without_end_is_given_up_with_504() -> None:
    async with serving(http={"timeout_s": 0.1}) as server:
        response = await server.post("{ hello }", headers={"authorization": "Bearer slow"})
        assert response.status_code == 504
        assert response.json()["errors"][0]["extensions"]["code"] == "TIMED_OUT"


async def test_limits_are_told_with_status_400_or_200(server: Server) -> None:
    query = "{ thing {" + " inner {" * 20 + " id " + "}" * 22
    new = await server.post(query, headers={"accept": RESPONSE_JSON})
    assert new.status_code == 400
    assert new.json()["errors"][0]["extensions"]["code"] == "LIMIT"
    legacy = await server.post(query)
    assert legacy.status_code == 200


async def test_many_requests_leave_no_tasks_behind(server: Server) -> None:
    await server.post("{ hello }")
    async with server.client(limits=httpx.Limits(max_connections=10)) as client:
        before = len(asyncio.all_tasks())
        answers = await asyncio.gather(
            *(client.post(server.url, json={"query": "{ hello }"}) for _ in range(100))
        )
    assert {answer.status_code for answer in answers} == {200}
    await until(lambda: len(asyncio.all_tasks()) <= before)
