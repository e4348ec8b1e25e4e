"""Documents known by name, lists of operations, and what may be kept of answers."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import connect

from app import graphiql
from app.config import load
from app.errors import ConfigurationError
from app.graphql_documents import Documents, ManifestError, read_manifest
from app.graphql_request import Params
from app.server import Server
from services.errors import RequestError
from tests.api.people import sign_up
from tests.api.serving import Served, served
from tests.fixtures import settings_for

VIEWER = "query V { viewer { username } }"
TYPENAME = "{ __typename }"


def sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def apq(text: str) -> dict[str, Any]:
    return {"persistedQuery": {"version": 1, "sha256Hash": sha(text)}}


def manifest(tmp_path: Path, data: Any) -> str:
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps(data))
    return str(path)


APOLLO = {
    "format": "apollo-persisted-query-manifest",
    "version": 1,
    "operations": [{"id": sha(VIEWER), "name": "V", "type": "query", "body": VIEWER}],
}


def codes(answer: Any) -> list[str]:
    return [error["extensions"]["code"] for error in answer.json().get("errors", [])]


@pytest.mark.parametrize("data", [APOLLO, {sha(VIEWER): VIEWER}, {"v-1": VIEWER}])
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_a_document_of_the_manifest_is_named(
    tmp_path: Path, data: dict[str, Any], method: str
) -> None:
    async with served(tmp_path, trusted_documents=manifest(tmp_path, data)) as server:
        ann = await sign_up(server.deps, "ann")
        names = [f"sha256:{sha(VIEWER)}", *(set(data) & {"v-1", sha(VIEWER)})]
        for name in names:
            answer = await server.send({"documentId": name}, ann, method=method)
            assert answer.json()["data"] == {"viewer": {"username": "ann"}}
        wrong = await server.send({"documentId": "sha256:00"}, ann, method=method)
        assert codes(wrong) == ["PERSISTED_QUERY_NOT_FOUND"]
        assert wrong.json()["errors"][0]["message"] == (
            "There is no document with the id 'sha256:00' here."
        )


async def test_an_id_that_is_not_the_documents_own_is_refused(tmp_path: Path) -> None:
    async with served(tmp_path, trusted_documents=manifest(tmp_path, {"v-1": VIEWER})) as server:
        ann = await sign_up(server.deps, "ann")
        for name, text, code in (
            ("v-1", VIEWER, None),
            (sha(TYPENAME), TYPENAME, None),
            ("v-1", TYPENAME, "BAD_REQUEST"),
            ("v-2", TYPENAME, "PERSISTED_QUERY_NOT_FOUND"),
            (sha(VIEWER), TYPENAME, "PERSISTED_QUERY_NOT_FOUND"),
        ):
            answer = await server.send({"documentId": name, "query": text}, ann)
            assert codes(answer) == ([code] if code else []), name
        for text, code in ((VIEWER, None), (TYPENAME, "BAD_REQUEST")):
            body = {"documentId": "v-1", "extensions": apq(text)}
            assert codes(await server.send(body, ann)) == ([code] if code else []), text


async def test_who_asks_from_another_site_is_told_once_what_answers_vary_by(tmp_path: Path) -> None:
    site = "https://app.example.org"
    async with served(tmp_path, cors_origins=(site,)) as server:
        answer = await server.send({"query": TYPENAME}, origin=site)
        assert answer.headers.get_list("access-control-allow-origin") == [site]
        assert answer.headers.get_list("vary") == ["Accept, Origin"]
        for headers in ({"origin": "https://evil.example.org"}, {}):
            other = await server.send({"query": TYPENAME}, **headers)
            assert "access-control-allow-origin" not in other.headers
            assert other.headers.get_list("vary") == ["Accept, Origin"]


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_a_client_registers_a_document_by_its_hash(tmp_path: Path, method: str) -> None:
    def given(**more: Any) -> dict[str, Any]:
        extensions: Any = apq(TYPENAME)
        return {"extensions": json.dumps(extensions) if method == "GET" else extensions, **more}

    async with served(tmp_path) as server:
        unknown = await server.send(given(), method=method)
        assert codes(unknown) == ["PERSISTED_QUERY_NOT_FOUND"]
        assert unknown.json()["errors"][0]["message"] == "PersistedQueryNotFound"
        assert unknown.status_code == 200
        first = await server.send(given(query=TYPENAME), method=method)
        again = await server.send(given(), method=method)
        assert first.json()["data"] == again.json()["data"] == {"__typename": "Query"}
        named = await server.send({"documentId": f"sha256:{sha(TYPENAME)}"}, method=method)
        assert named.json()["data"] == {"__typename": "Query"}

        lied = await server.send(given(query="{ __typename } "), method=method)
        assert codes(lied) == ["BAD_REQUEST"]
        assert lied.json()["errors"][0]["message"] == "provided sha does not match query"


async def test_what_cannot_be_run_is_not_registered(tmp_path: Path) -> None:
    async with served(tmp_path) as server:
        bad = "{ nothing }"
        body = {"query": bad, "extensions": apq(bad)}
        assert codes(await server.send(body)) == ["GRAPHQL_VALIDATION_FAILED"]
        assert codes(await server.send({"extensions": apq(bad)})) == ["PERSISTED_QUERY_NOT_FOUND"]


async def test_registration_can_be_turned_off(tmp_path: Path) -> None:
    async with served(tmp_path, persisted_queries=False) as server:
        whole = {"query": TYPENAME, "extensions": apq(TYPENAME)}
        assert (await server.send(whole)).json()["data"] == {"__typename": "Query"}
        answer = await server.send({"extensions": apq(TYPENAME)})
        assert codes(answer) == ["PERSISTED_QUERY_NOT_SUPPORTED"]
        assert answer.json()["errors"][0]["message"] == "PersistedQueryNotSupported"


async def socket_answers(server: Served, *payloads: dict[str, Any]) -> list[dict[str, Any]]:
    """Send operations one after the other over one socket; give the first message to each."""
    heard = []
    async with connect(
        server.url.replace("http", "ws") + "/graphql",
        subprotocols=["graphql-transport-ws"],  # type: ignore[list-item]
    ) as socket:
        await socket.send(json.dumps({"type": "connection_init"}))
        assert json.loads(await socket.recv())["type"] == "connection_ack"
        for number, payload in enumerate(payloads):
            message = {"id": str(number), "type": "subscribe", "payload": payload}
            await socket.send(json.dumps(message))
            heard.append(json.loads(await socket.recv()))
            if heard[-1]["type"] == "next":
                assert json.loads(await socket.recv())["type"] == "complete"
    return heard


async def test_a_socket_knows_documents_by_name(tmp_path: Path) -> None:
    async with served(tmp_path, trusted_documents=manifest(tmp_path, APOLLO)) as server:
        named, unknown, whole, registered = await socket_answers(
            server,
            {"documentId": f"sha256:{sha(VIEWER)}"},
            {"extensions": apq(TYPENAME)},
            {"query": TYPENAME, "extensions": apq(TYPENAME)},
            {"extensions": apq(TYPENAME)},
        )
        assert named["payload"]["data"] == {"viewer": None}
        assert unknown["type"] == "error"
        assert unknown["payload"][0]["message"] == "PersistedQueryNotFound"
        assert whole["payload"]["data"] == registered["payload"]["data"]


async def test_where_only_trusted_documents_run_the_rest_is_refused(tmp_path: Path) -> None:
    path = manifest(tmp_path, APOLLO)
    async with served(tmp_path, trusted_documents=path, trusted_documents_only=True) as server:
        ann = await sign_up(server.deps, "ann")
        admin = await sign_up(server.deps, "admin", "admin")
        refused = await server.post(TYPENAME, ann)
        assert codes(refused) == ["DOCUMENT_NOT_TRUSTED"]
        # In full is as good as by name, and registering is no way around.
        assert (await server.post(VIEWER, ann)).json()["data"] == {"viewer": {"username": "ann"}}
        body = {"query": TYPENAME, "extensions": apq(TYPENAME)}
        assert codes(await server.send(body, ann)) == ["DOCUMENT_NOT_TRUSTED"]
        assert (await server.post(TYPENAME, admin)).json()["data"] == {"__typename": "Query"}
        assert (await server.send(body, admin)).json()["data"] == {"__typename": "Query"}
        assert codes(await server.send({"extensions": apq(TYPENAME)}, ann)) == [
            "PERSISTED_QUERY_NOT_FOUND"
        ]
        (heard,) = await socket_answers(server, {"query": TYPENAME})
        assert heard["payload"][0]["extensions"]["code"] == "DOCUMENT_NOT_TRUSTED"
        batch = await server.send([{"query": TYPENAME}, {"query": VIEWER}], ann)
        first, second = batch.json()
        assert first["errors"][0]["extensions"]["code"] == "DOCUMENT_NOT_TRUSTED"
        assert second["data"] == {"viewer": {"username": "ann"}}
        # GraphiQL can sign in.
        assert (await server.post(graphiql.DOCUMENTS[-1], ann)).json()["data"] is not None


def test_what_graphiql_signs_in_with_is_what_its_sources_say() -> None:
    source = (graphiql.ROOT / "src" / "session.ts").read_text()
    (fields,) = re.findall(r'const SESSION_FIELDS = "(.*)";', source)
    found = re.findall(
        r'const (?:SIGN_IN|REGISTER|REFRESH|REVOKE|VIEWER) = ["`]([^"`]*)["`];', source
    )
    assert tuple(text.replace("${SESSION_FIELDS}", fields) for text in found) == graphiql.DOCUMENTS


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{", "not JSON"),
        ("[]", "a map of ids"),
        ('{"a": 1}', "the text of a document for every id"),
        ('{"format": "apollo-persisted-query-manifest", "version": 2}', "version 1"),
        (
            '{"format": "apollo-persisted-query-manifest", "version": 1, "operations": [1]}',
            "the text of a document for every id",
        ),
    ],
)
def test_a_manifest_that_makes_no_sense_keeps_the_server_from_starting(
    tmp_path: Path, text: str, why: str
) -> None:
    path = tmp_path / "manifest.json"
    path.write_text(text)
    with pytest.raises(ManifestError, match=why):
        read_manifest(path)
    with pytest.raises(ConfigurationError, match="NOOSPHERE_TRUSTED_DOCUMENTS="):
        Server(settings_for(tmp_path, trusted_documents=str(path)))


def test_a_manifest_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="cannot be read"):
        read_manifest(tmp_path / "none.json")
    with pytest.raises(ConfigurationError, match="TRUSTED_DOCUMENTS_ONLY is set"):
        load(trusted_documents_only=True)


def test_what_is_registered_is_bounded_by_count_and_size() -> None:
    documents = Documents(may_register=True, max_registered=3, max_bytes=160)

    def register(text: str) -> Params:
        params = Params(text, None, None, None, f"sha256:{sha(text)}")
        documents.register(params)
        return Params(None, None, None, None, params.document_id)

    names = [register(f"{{ a{number} }}") for number in range(3)]
    # The first is used again, so that the second is the oldest.
    assert documents.text(names[0], is_permitted=False) == "{ a0 }"
    register("{ a3 }")
    with pytest.raises(RequestError, match="There is no document"):
        documents.text(names[1], is_permitted=False)
    assert documents.text(names[0], is_permitted=False) == "{ a0 }"
    register("x" * 100)
    assert len(documents) == 3


# ---- lists of operations


async def test_a_list_is_answered_by_a_list_in_its_order(tmp_path: Path) -> None:
    async with served(tmp_path) as server:
        ann = await sign_up(server.deps, "ann")
        operations = [
            {"query": VIEWER},
            {"query": "{ nothing }"},
            {"query": "query Q($id: ID!) { node(id: $id) { id } }", "variables": {"id": ann.id}},
            {"query": 7},
            {"query": "subscription { viewerEvents { cursor } }"},
        ]
        answer = await server.send(operations, ann)
        assert answer.status_code == 200
        viewer, invalid, node, malformed, subscription = answer.json()
        assert viewer["data"] == {"viewer": {"username": "ann"}}
        assert invalid["errors"][0]["extensions"]["code"] == "GRAPHQL_VALIDATION_FAILED"
        assert node["data"] == {"node": {"id": ann.id}}
        assert malformed["errors"][0]["extensions"]["code"] == "BAD_REQUEST"
        assert subscription["errors"][0]["extensions"]["code"] == "SUBSCRIPTION_NOT_SUPPORTED"
        # Each is paid for.
        spent = [one["extensions"]["cost"]["spent"] for one in (viewer, node)]
        assert len(set(spent)) == 2


async def test_mutations_of_a_list_run_one_after_the_other(tmp_path: Path) -> None:
    create = "mutation($t: String) { conversationCreate(input: {title: $t}) { errors { code } } }"
    async with served(tmp_path) as server:
        ann = await sign_up(server.deps, "ann")
        operations: list[dict[str, Any]] = [
            {"query": create, "variables": {"t": f"number {n}"}} for n in range(3)
        ]
        operations.append({"query": "{ conversations { nodes { title } } }"})
        answer = (await server.send(operations, ann)).json()
        titles = [node["title"] for node in answer[-1]["data"]["conversations"]["nodes"]]
        assert titles == ["number 2", "number 1", "number 0"]


async def test_a_list_is_bounded_in_number_and_in_objects(tmp_path: Path) -> None:
    async with served(tmp_path, max_query_objects=100) as server:
        many = await server.send([{"query": TYPENAME}] * 11)
        assert many.status_code == 400
        assert codes(many) == ["LIMIT"]
        assert "has 11 operations; the limit is 10." in many.json()["errors"][0]["message"]
        assert len((await server.send([{"query": TYPENAME}] * 10)).json()) == 10
        wide = {"query": "{ conversations(first: 60) { nodes { id } } }"}
        assert "errors" not in (await server.send([wide])).json()[0]
        refused = await server.send([wide, wide])
        assert codes(refused) == ["LIMIT"]
        assert "up to 134 objects together; the limit is 100." in refused.text
        assert codes(await server.send([])) == ["BAD_REQUEST"]


async def test_a_list_that_nobody_can_pay_for_is_429(tmp_path: Path) -> None:
    async with served(tmp_path, anonymous_points_per_minute=2) as server:
        both = await server.send([{"query": "{ viewer { id } }"}] * 2)
        assert both.status_code == 200
        assert [("data" in one) for one in both.json()].count(True) == 1
        assert 1 <= int(both.headers["retry-after"]) <= 60
        none = await server.send([{"query": TYPENAME}] * 2)
        assert none.status_code == 429


async def test_lists_can_be_turned_off(tmp_path: Path) -> None:
    async with served(tmp_path, max_batch=0) as server:
        refused = await server.send([{"query": TYPENAME}])
        assert refused.status_code == 400
        assert "one operation per request" in refused.text


# ---- what may be kept


async def test_what_is_nobodys_own_may_be_kept_and_asked_for_by_its_tag(tmp_path: Path) -> None:
    async with served(tmp_path, public_max_age=60) as server:
        first = await server.send({"query": TYPENAME}, method="GET")
        assert first.headers["cache-control"] == "public, max-age=60"
        assert {"Accept", "Authorization", "Cookie", "Origin"} <= set(
            re.split(r",\s*", first.headers["vary"])
        )
        assert first.json() == {"data": {"__typename": "Query"}}
        tag = first.headers["etag"]
        again = await server.send({"query": TYPENAME}, method="GET", **{"if-none-match": tag})
        assert (again.status_code, again.content) == (304, b"")
        assert again.headers["etag"] == tag
        other = await server.send(
            {"query": "{ viewer { id } }"}, method="GET", **{"if-none-match": tag}
        )
        assert other.status_code == 200
        assert other.headers["etag"] != tag


async def test_without_a_time_it_is_asked_for_each_time(tmp_path: Path) -> None:
    async with served(tmp_path) as server:
        answer = await server.send({"query": TYPENAME}, method="GET")
        assert answer.headers["cache-control"] == "public, no-cache"
        assert "etag" in answer.headers


async def test_what_is_somebodys_own_is_nobodys_to_keep(tmp_path: Path) -> None:
    async with served(tmp_path, public_max_age=60) as server:
        ann = await sign_up(server.deps, "ann")
        own = [
            await server.send({"query": VIEWER}, ann, method="GET"),
            # A limit of an address is its own, though nobody is signed in.
            await server.send({"query": "{ rateLimit { left } }"}, method="GET"),
            await server.send({"query": "{ nothing }"}, method="GET"),
            await server.send({"query": '{ nodes(ids: "x", ids: "y") { id } }'}, method="GET"),
            await server.send({"query": TYPENAME}),
        ]
        for answer in own:
            assert "no-store" in answer.headers["cache-control"]
            assert "etag" not in answer.headers
        assert own[0].headers["cache-control"] == "private, no-store"
        assert "cost" in own[0].json()["extensions"]
