"""Bodies that are broken on the wire: the running server answers each."""

import json

import httpx
import pytest

from tests.api import operations as op
from tests.api.broken.conftest import VIEWER
from tests.api.hostile import assert_decent
from tests.product import Client, Product, errors_of

JSON_TYPE = {"Content-Type": "application/json"}


async def conversation_of(client: Client) -> str:
    data = await client.run(op.CREATE_CONVERSATION)
    return str(data["conversationCreate"]["conversation"]["id"])


def body_of(content: bytes) -> bytes:
    """Give a request whose message text is these very bytes."""
    head = json.dumps({"query": op.SEND, "variables": {"id": "cnv_1", "content": "@"}}).encode()
    return head.replace(b"@", content)


BODIES: dict[str, tuple[bytes, int, str]] = {
    "nothing": (b"", 400, "BAD_REQUEST"),
    "no JSON": (b"{", 400, "BAD_REQUEST"),
    "invalid UTF-8": (body_of(b"\xff\xfe"), 400, "BAD_REQUEST"),
    "overlong UTF-8": (body_of(b"\xc0\xaf"), 400, "BAD_REQUEST"),
    "a surrogate in UTF-8": (body_of(b"\xed\xa0\x80"), 400, "BAD_REQUEST"),
    "half a surrogate pair": (body_of(b"\\ud800"), 400, "BAD_REQUEST"),
    "a pair the wrong way round": (body_of(b"\\udc00\\ud800"), 400, "BAD_REQUEST"),
    "raw NUL": (body_of(b"\x00"), 400, "BAD_REQUEST"),
    "UTF-16": (json.dumps({"query": VIEWER}).encode("utf-16"), 400, "BAD_REQUEST"),
    "NaN": (b'{"query": "{ viewer { id } }", "variables": {"a": NaN}}', 400, "BAD_REQUEST"),
    "a list": (b"[]", 400, "BAD_REQUEST"),
    "a number": (b"7", 400, "BAD_REQUEST"),
    "null": (b"null", 400, "BAD_REQUEST"),
    "no query": (b"{}", 400, "BAD_REQUEST"),
    "a query that is a number": (b'{"query": 7}', 400, "BAD_REQUEST"),
    "variables that are a list": (
        b'{"query": "{ viewer { id } }", "variables": []}',
        400,
        "BAD_REQUEST",
    ),
    "5,000 levels of JSON": (
        b'{"query": "{ viewer { id } }", "variables": {"a": ' + b"[" * 5000 + b"]" * 5000 + b"}}",
        400,
        "BAD_REQUEST",
    ),
    "more than may be sent": (b" " * 2_200_000, 413, "LIMIT"),
    "a NUL in the document": (b'{"query": "{ viewer \\u0000 { id } }"}', 400, ""),
    "half a pair in the document": (
        b'{"query": "{ node(id: \\"\\\\ud800\\") { id } }"}',
        400,
        "GRAPHQL_PARSE_FAILED",
    ),
    "deep selections": (
        json.dumps({"query": "{ viewer " * 2000 + "{ id }" + " }" * 2000}).encode(),
        400,
        "",
    ),
    "deep lists in the document": (
        json.dumps({"query": "{ nodes(ids: " + "[" * 2000 + "]" * 2000 + ") { id } }"}).encode(),
        400,
        "",
    ),
}


@pytest.mark.parametrize("what", BODIES)
async def test_a_broken_body_is_refused(product: Product, what: str) -> None:
    body, status, code = BODIES[what]
    for accept in ("application/graphql-response+json", "application/json"):
        async with httpx.AsyncClient(base_url=product.url, timeout=60) as http:
            answer = await http.post(
                "/graphql", content=body, headers={**JSON_TYPE, "Accept": accept}
            )
        assert_decent(answer.text)
        if accept != "application/json" or code in ("BAD_REQUEST", "LIMIT"):
            assert answer.status_code == status, answer.text
        (error,) = answer.json()["errors"]
        assert error["message"]
        assert error["extensions"]["code"] == code or not code, error


async def test_the_same_text_with_a_nul_that_json_allows_is_told_as_such(client: Client) -> None:
    id_ = await conversation_of(client)

    data = await client.run(op.SEND, id=id_, content="a\x00b")

    assert errors_of(data["messageSend"]) == [("INVALID", "input.content")]


async def test_a_message_of_a_megabyte_is_told_its_limit(client: Client) -> None:
    id_ = await conversation_of(client)

    answer = await client.raw(op.SEND, id=id_, content="é" * 1_000_000)

    assert_decent(answer)
    if answer.get("data"):
        assert errors_of(answer["data"]["messageSend"]) == [("LIMIT", "input.content")]
    else:
        assert answer["errors"][0]["extensions"]["code"] == "LIMIT"
    data = await client.run(op.SEND, id=id_, content="x" * 1_048_576)
    assert errors_of(data["messageSend"]) == [("LIMIT", "input.content")]
    kept = await client.run(op.MESSAGES, id=id_)
    assert kept["conversation"]["messages"]["nodes"] == []


@pytest.mark.parametrize("levels", [40, 500, 1000])
async def test_deep_json_in_the_arguments_of_a_step_is_refused(client: Client, levels: int) -> None:
    deep = "[" * levels + "]" * levels
    body = {
        "query": op.CREATE_PLAN,
        "variables": {
            "input": {
                "title": "Deep",
                "steps": [{"description": "a", "tool": "recall", "arguments": {"query": "DEEP"}}],
            }
        },
    }
    raw = json.dumps(body).replace('"DEEP"', deep)

    answer = await client.http.post(
        "/graphql", content=raw, headers={**JSON_TYPE, **client.headers}
    )

    assert_decent(answer.text)
    found = answer.json()
    if "errors" in found:
        assert found["errors"][0]["extensions"]["code"] == "BAD_REQUEST"
    else:
        ((code, path),) = errors_of(found["data"]["planCreate"])
        assert code == "INVALID"
        assert path.startswith("input.steps.0.arguments.query")


async def test_deep_json_written_in_the_document_is_refused(client: Client) -> None:
    for levels in (40, 400, 2000, 20_000):
        deep = "[" * levels + "]" * levels
        answer = await client.raw(
            'mutation { planCreate(input: {title: "Deep", steps: [{description: "a",'
            f' tool: "recall", arguments: {{query: {deep}}}}}]}}) {{ errors {{ code path }} }} }}'
        )
        assert_decent(answer)
        if answer.get("errors"):
            code = answer["errors"][0]["extensions"]["code"]
            assert code in ("LIMIT", "GRAPHQL_PARSE_FAILED", "BAD_USER_INPUT"), answer
        else:
            assert answer["data"]["planCreate"]["errors"][0]["code"] == "INVALID"
