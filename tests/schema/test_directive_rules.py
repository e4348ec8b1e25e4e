"""What documents with `@defer` and `@stream` must keep to, in the words of graphql-js 17."""

import pytest

import schema
from schema.execution import Engine, Prepared

GRAPH = schema.build()._schema
UNIQUE = (
    "Value for arguments 'defer(label:)' and 'stream(label:)' must be unique across all "
    "Defer/Stream directive usages."
)
DIFFERING = (
    "Fields 'nodes' conflict because they have differing stream directives. Use different aliases "
    "on the fields to fetch both if this was intentional."
)
NOT_ON_EVENTS = (
    "Defer directive not supported on subscription operations. Disable `@defer` by setting the "
    "`if` argument to `false`."
)
REFUSED = [
    (
        "query($l: String) { viewer { ... @defer(label: $l) { id } } }",
        "Argument '@defer(label:)' must be a static string.",
    ),
    ('{ viewer { ... @defer(label: "a") { id } ... @defer(label: "a") { id } } }', UNIQUE),
    (
        '{ conversations { nodes @stream(label: "a") { id ... @defer(label: "a") { id } } } }',
        UNIQUE,
    ),
    (
        "{ viewer @stream { id } }",
        "Directive '@stream' cannot be used on non-list field 'Query.viewer'.",
    ),
    (
        "{ conversations { nodes @stream(initialCount: -1) { id } } }",
        "Argument '@stream(initialCount:)' must not be negative.",
    ),
    ("{ conversations { nodes @stream { id } nodes { id } } }", DIFFERING),
    (
        "{ conversations { nodes @stream { id } ...F } } "
        "fragment F on ConversationConnection { nodes @stream(initialCount: 1) { id } }",
        DIFFERING,
    ),
    (
        "mutation { ... @defer { sessionRevoke { errors { code } } } }",
        "Defer directive cannot be used on root mutation type 'Mutation'.",
    ),
    ("subscription { viewerEvents { ... @defer { cursor } } }", NOT_ON_EVENTS),
    (
        "subscription { viewerEvents { ...F } } "
        "fragment F on ViewerEvent { ... @defer { cursor } }",
        NOT_ON_EVENTS,
    ),
    ("{ viewer @defer { id } }", "Directive '@defer' may not be used on field."),
    (
        "{ viewer { ... @stream { id } } }",
        "Directive '@stream' may not be used on inline fragment.",
    ),
]
ALLOWED = [
    "{ viewer { ... @defer { id } ...F @defer } } fragment F on User { id }",
    'query($on: Boolean!) { viewer { ... @defer(if: $on, label: "a") { id } } }',
    "{ conversations { nodes @stream(initialCount: 1) { id } nodes @stream(initialCount: 1) { id }"
    " a: nodes @stream { id } } }",
    "mutation { sessionRevoke { ... @defer { errors { code } } } }",
    "subscription { viewerEvents { ... @defer(if: false) { cursor } } }",
    "subscription($on: Boolean!) { viewerEvents { ... @defer(if: $on) { cursor } } }",
    "{ ... @defer { viewer { id } } }",
]


@pytest.mark.parametrize(("document", "message"), REFUSED)
def test_a_document_that_is_refused(document: str, message: str) -> None:
    (error,) = Engine(GRAPH).prepare(document)  # type: ignore[misc]
    assert error["message"] == message
    assert error["extensions"] == {"code": "GRAPHQL_VALIDATION_FAILED"}
    assert error["locations"]


@pytest.mark.parametrize("document", ALLOWED)
def test_a_document_that_is_allowed(document: str) -> None:
    variables = {"on": False} if "$on" in document else {}
    assert isinstance(Engine(GRAPH).prepare(document, None, variables), Prepared)


def test_fragments_that_stand_in_themselves_are_refused_as_ever() -> None:
    query = (
        "{ conversations { nodes @stream { ...F } } } fragment F on Conversation { "
        "messages { nodes @stream { conversation { ...F } } } }"
    )
    (error,) = Engine(GRAPH).prepare(query)  # type: ignore[misc]
    assert "Cannot spread fragment 'F' within itself" in error["message"]


def test_a_space_may_follow_the_sign() -> None:
    prepared = Engine(GRAPH).prepare("{ viewer { ... @ defer { id } } }")
    assert isinstance(prepared, Prepared)
    assert prepared.document.is_divisible
    other = Engine(GRAPH).prepare("query stream { defer: viewer { id } }")
    assert isinstance(other, Prepared)
    assert not other.document.is_divisible
