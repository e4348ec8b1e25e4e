"""What is wrong with an input is told to its sender; nothing is written, nothing leaks."""

import math
from collections.abc import Iterator
from typing import Any

import pytest
from graphql import (
    GraphQLInputObjectType,
    GraphQLScalarType,
    get_named_type,
    is_required_argument,
)

from resolvers.base import Order
from resolvers.uploads import UploadedFile
from tests.api.access.expectations import MUTATIONS, SUBSCRIPTIONS, nothing
from tests.api.access.graph import root
from tests.api.access.world import World, absent, filled
from tests.api.hostile import IDS, TEXTS, WORDS, assert_decent, nested
from tests.api.people import everything_stored

pytestmark = pytest.mark.asyncio(loop_scope="module")

_STEP = {
    "description": "Think",
    "tool": "recall",
    "arguments": {"query": "trees"},
    "dependsOn": [],
}
_RESOURCES = {
    "cpuMillis": 100,
    "memoryBytes": 200_000_000,
    "diskBytes": 10_000_000,
    "pids": 20,
    "networkBytesPerSecond": None,
}
# Every input of every mutation with all of its fields.
FULL: dict[str, dict[str, Any]] = {
    "userRegister": {
        "input": {
            "username": "<new>",
            "email": "<new>@example.org",
            "password": "correct horse",
            "displayName": "Somebody",
        }
    },
    "sessionCreate": {"input": {"login": "owner", "password": "correct horse"}},
    "sessionRefresh": {"token": "nobody's"},
    "sessionRevoke": {"id": "<Session>"},
    "userUpdate": {"input": {"displayName": "Somebody", "email": "<new>@example.org"}},
    "userChangePassword": {
        "input": {"currentPassword": "correct horse", "newPassword": "correct donkey"}
    },
    "userRolesSet": {"input": {"userId": "<User>", "roles": ["user"]}},
    "rateLimitConfigSet": {"input": {"holderId": "<User>", "pointsPerMinute": 700_000}},
    "rateLimitConfigDelete": {"id": "<RateLimitConfig>"},
    "conversationCreate": {"input": {"title": "Trees"}},
    "conversationUpdate": {"id": "<Conversation>", "input": {"title": "Trees", "status": "ACTIVE"}},
    "conversationDelete": {"id": "<Conversation>"},
    "messageSend": {
        "input": {"conversationId": "<Conversation>", "content": "Hello", "idempotencyKey": "one"}
    },
    "messageStop": {"id": "<Message>"},
    "messageRetry": {"id": "<Message>"},
    "memoryCreate": {"input": {"content": "I like trees", "type": "SEMANTIC", "importance": 0.5}},
    "memoryUpdate": {
        "id": "<Memory>",
        "input": {"content": "I like trees", "type": "SEMANTIC", "importance": 0.5},
    },
    "memoryDelete": {"id": "<Memory>"},
    "planCreate": {"input": {"title": "Trees", "description": "All of them", "steps": [_STEP]}},
    "planDelete": {"id": "<Plan>"},
    "planExecute": {"id": "<Plan>"},
    "planExecutionCancel": {"id": "<PlanExecution>"},
    "toolUpdate": {"id": "<Tool>", "input": {"isEnabled": True}},
    "roleUpdate": {
        "id": "<Role>",
        "input": {
            "description": "Somebody",
            "sandboxQuota": {
                "count": 1,
                "cpuMillis": 1000,
                "memoryBytes": 1_000_000_000,
                "diskBytes": 1_000_000_000,
            },
        },
    },
    "sandboxTemplateCreate": {
        "input": {
            "name": "<new>",
            "image": "x y",
            "description": "For trees",
            "language": "python",
            "resources": _RESOURCES,
            "envVariables": [{"name": "A", "value": "b"}],
        }
    },
    "sandboxTemplateUpdate": {
        "id": "<SandboxTemplate>",
        "input": {
            "image": "example/none:1",
            "description": "For trees",
            "language": "python",
            "resources": _RESOURCES,
            "envVariables": [{"name": "A", "value": "b"}],
            "isActive": True,
        },
    },
    "sandboxTemplateDelete": {"id": "<SandboxTemplate>"},
    "sandboxCreate": {
        "input": {
            "templateId": "<SandboxTemplate>",
            "resources": _RESOURCES,
            "security": {
                "network": "NONE",
                "networkRules": [{"host": "example.org", "ports": [443]}],
                "syscalls": ["mount"],
                "mounts": ["/etc"],
                "capabilities": ["SYS_ADMIN"],
                "envVariables": [{"name": "A", "value": "b"}],
            },
            "timeoutSeconds": 60,
            "idleTimeoutSeconds": 60,
            "onExpiry": "STOP",
            "isPersistent": False,
            "snapshotId": None,
            "conversationId": "<Conversation>",
        }
    },
    "sandboxExecute": {
        "input": {
            "sandboxId": "<Sandbox>",
            "command": "true",
            "argv": None,
            "workingDir": ".",
            "environment": [{"name": "A", "value": "b"}],
            "stdin": "",
            "stdinBase64": None,
            "keepStdinOpen": False,
            "terminal": {"rows": 24, "cols": 80},
            "isBackground": False,
            "timeoutSeconds": 10,
            "outputLimitBytes": 1000,
        }
    },
    "sandboxExecutionCancel": {"id": "<SandboxExecution>"},
    "sandboxExecutionWrite": {
        "input": {
            "executionId": "<SandboxExecution>",
            "text": "a",
            "base64": None,
            "isLast": False,
        }
    },
    "sandboxExecutionSignal": {"input": {"executionId": "<SandboxExecution>", "signal": "TERM"}},
    "sandboxExecutionResize": {
        "input": {"executionId": "<SandboxExecution>", "terminal": {"rows": 24, "cols": 80}}
    },
    "sandboxProcessKill": {"input": {"sandboxId": "<Sandbox>", "pid": 2, "signal": "KILL"}},
    "sandboxUpdate": {
        "id": "<Sandbox>",
        "input": {
            "resources": _RESOURCES,
            "idleTimeoutSeconds": 60,
            "network": "NONE",
            "networkRules": [{"host": "example.org", "ports": [443]}],
            "onExpiry": "STOP",
            "isPersistent": False,
        },
    },
    "sandboxStart": {"id": "<Sandbox>"},
    "sandboxSnapshot": {"input": {"sandboxId": "<Sandbox>", "name": "a"}},
    "sandboxSnapshotDelete": {"id": "<SandboxSnapshot>"},
    "sandboxPortOpen": {"input": {"sandboxId": "<Sandbox>", "port": 81, "description": "a"}},
    "sandboxPortShare": {"id": "<SandboxPort>", "input": {"seconds": 60, "revokesEarlier": False}},
    "sandboxPortClose": {"id": "<SandboxPort>"},
    "sandboxFileMakeDirectory": {"input": {"sandboxId": "<Sandbox>", "path": "a"}},
    "sandboxFileRename": {"input": {"sandboxId": "<Sandbox>", "path": "a", "newPath": "b"}},
    "sandboxPause": {"id": "<Sandbox>"},
    "sandboxResume": {"id": "<Sandbox>"},
    "sandboxStop": {"id": "<Sandbox>"},
    "sandboxDelete": {"id": "<Sandbox>"},
    "sandboxExtend": {"id": "<Sandbox>"},
    "sandboxFileWrite": {
        "input": {"sandboxId": "<Sandbox>", "path": "a", "content": "b", "encoding": "UTF8"}
    },
    "sandboxFileUpload": {
        "input": {
            "sandboxId": "<Sandbox>",
            "path": "a",
            "file": UploadedFile("a", None, nothing()),
        }
    },
    "sandboxFileRemove": {"input": {"sandboxId": "<Sandbox>", "path": "a", "isRecursive": False}},
}
# Who can do it at all; the others are told that before their input is looked at.
ADMINS = {
    "userRolesSet",
    "rateLimitConfigSet",
    "rateLimitConfigDelete",
    "roleUpdate",
    "toolUpdate",
    "sandboxTemplateCreate",
    "sandboxTemplateUpdate",
    "sandboxTemplateDelete",
}
# What is refused whatever the text: a wrong pair is a wrong pair, an unknown token unknown.
ALWAYS = {
    ("sessionCreate", "login"): ("INVALID", ["input", "password"]),
    ("sessionCreate", "password"): ("INVALID", ["input", "password"]),
    ("sessionRefresh", "token"): ("INVALID", ["refreshToken"]),
    ("userChangePassword", "currentPassword"): ("INVALID", ["input", "currentPassword"]),
    ("userRolesSet", "roles"): ("INVALID", ["input", "roles"]),
    ("planCreate", "tool"): ("NOT_FOUND", ["input", "steps", "0", "tool"]),
}
# An empty text is none: it is left out.
MAY_BE_EMPTY = {("planCreate", "description")}
# These need a sandbox that runs, or a driver: either refusal is right, and no file is touched.
NEEDS_A_SANDBOX = {name for name in FULL if name.startswith("sandbox")}
_CODES = {
    "empty": {"REQUIRED"},
    "blank": {"REQUIRED", "INVALID"},
    "too long": {"LIMIT"},
    "NUL": {"INVALID"},
    "half a surrogate pair": {"INVALID"},
}


def leaves(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    """Give the places of a mutation's variables, with the kind of value each has."""
    if isinstance(value, dict) and path[-1:] != ("arguments",):
        for key, inner in value.items():
            yield from leaves(inner, (*path, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from leaves(inner, (*path, str(index)))
    elif isinstance(value, str) and value.startswith("<") and "new" not in value:
        yield path, "id"
    elif isinstance(value, str) and not value.isupper():
        yield path, "text"


def put(value: Any, path: tuple[str, ...], what: Any) -> Any:
    """Give a copy of the variables with something else in one place."""
    if not path:
        return what
    if isinstance(value, list):
        copy = list(value)
        copy[int(path[0])] = put(copy[int(path[0])], path[1:], what)
        return copy
    return {**value, path[0]: put(value[path[0]], path[1:], what)}


def leaf_cases(kind: str) -> list[tuple[str, tuple[str, ...]]]:
    return [
        (name, path)
        for name, variables in FULL.items()
        for path, found in leaves(variables)
        if found == kind
    ]


def asker(world: World, name: str) -> Any:
    return world.admin if name in ADMINS else world.owner


def errors_of(answer: Any) -> list[dict[str, Any]]:
    assert not answer.get("errors"), answer
    (payload,) = answer["data"].values()
    return list(payload["errors"])


@pytest.fixture(autouse=True)
def the_whole_schema_is_tried() -> None:
    """Fail when an input has a field that is not in the table."""
    assert set(FULL) == set(root("mutation")) == set(MUTATIONS)
    for name, field in root("mutation").items():
        argument = field.args.get("input")
        if argument is not None:
            check_complete(name, get_named_type(argument.type), FULL[name]["input"])


def check_complete(name: str, type_: Any, given: Any) -> None:
    if isinstance(type_, GraphQLInputObjectType):
        assert set(given) == set(type_.fields), (name, type_.name)
        for field_name, field in type_.fields.items():
            inner = given[field_name]
            one = inner[0] if str(field.type).startswith("[") and inner else inner
            check_complete(name, get_named_type(field.type), one)


@pytest.mark.parametrize(
    ("name", "path"), leaf_cases("text"), ids=lambda v: ".".join(v) if isinstance(v, tuple) else v
)
async def test_an_unfit_text_is_told_and_changes_nothing(
    world: World, name: str, path: tuple[str, ...]
) -> None:
    who, given = asker(world, name), filled(world, "owner", FULL[name])
    leaf = next(part for part in reversed(path) if not part.isdigit())
    before = await everything_stored(world.deps)
    for what, text in TEXTS.items():
        if what in ("empty", "blank") and (name, leaf) in MAY_BE_EMPTY:
            continue
        answer = await world.api.raw(MUTATIONS[name].document, who, **put(given, path, text))

        assert_decent(answer)
        errors = errors_of(answer)
        assert errors, (what, answer)
        if name in NEEDS_A_SANDBOX:
            continue
        expected = ALWAYS.get((name, leaf))
        if expected is not None:
            assert (errors[0]["code"], errors[0]["path"]) == expected, what
        else:
            assert errors[0]["code"] in _CODES[what], (what, errors)
            assert errors[0]["path"] == list(path), (what, errors)
        assert errors[0]["message"].endswith("."), errors
    assert await everything_stored(world.deps) == before


@pytest.mark.parametrize(
    ("name", "path"), leaf_cases("id"), ids=lambda v: ".".join(v) if isinstance(v, tuple) else v
)
async def test_a_wrong_id_is_an_absent_one_and_changes_nothing(
    world: World, name: str, path: tuple[str, ...]
) -> None:
    who, given = asker(world, name), filled(world, "owner", FULL[name])
    own = given[path[0]] if len(path) == 1 else given[path[0]][path[1]]
    others = {"another kind": world.of_owner["User"], "a foreign one": ""}
    kind = FULL[name][path[0]] if len(path) == 1 else FULL[name][path[0]][path[1]]
    others["a foreign one"] = world.of_stranger.get(kind.strip("<>"), absent(own))
    if own.startswith("usr_"):
        others = {"another kind": world.of_owner["Plan"]}
    before = await everything_stored(world.deps)
    answers = {}
    for what, id_ in (IDS | others | {"absent": absent(own)}).items():
        answer = await world.api.raw(MUTATIONS[name].document, who, **put(given, path, id_))

        assert_decent(answer)
        errors = errors_of(answer)
        assert errors, (what, answer)
        if not (name in NEEDS_A_SANDBOX and path[0] == "input"):
            assert errors[0]["code"] == "NOT_FOUND", (what, errors)
            assert errors[0]["path"] == list(path), (what, errors)
        answers[what] = answer
    assert all(answer == answers["absent"] for answer in answers.values())
    assert await everything_stored(world.deps) == before


@pytest.mark.parametrize("what", WORDS)
async def test_texts_in_all_the_worlds_scripts_are_kept_as_they_are(
    world: World, what: str
) -> None:
    text, owner = WORDS[what], world.owner
    made = await world.api.run(
        "mutation($t: String!) { conversationCreate(input: {title: $t}) {"
        " conversation { id title } errors { code message } } }",
        owner,
        t=text,
    )
    assert made["errors"] == []
    assert made["conversation"]["title"] == text
    sent = await world.api.run(
        "mutation($c: ID!, $t: String!) { messageSend(input: {conversationId: $c, content: $t,"
        " idempotencyKey: $t}) { message { id content } errors { code message } } }",
        owner,
        c=made["conversation"]["id"],
        t=text,
    )
    assert sent["errors"] == []
    found = await world.api.run(
        "query($id: ID!) { message(id: $id) { content } }", owner, id=sent["message"]["id"]
    )
    assert found == {"content": text}
    listed = await world.api.run(
        "query($t: String!) { conversations(filter: {titleContains: $t}) { nodes { id } } }",
        owner,
        t=text,
    )
    assert {"id": made["conversation"]["id"]} in listed["nodes"]


# ---- plans

PLAN = MUTATIONS["planCreate"].document
STEPS: dict[str, tuple[list[dict[str, Any]], str, list[str]]] = {
    "no steps": ([], "REQUIRED", ["steps"]),
    "too many": ([_STEP] * 101, "LIMIT", ["steps"]),
    "on itself": ([_STEP | {"dependsOn": [0]}], "INVALID", ["steps", "0", "dependsOn"]),
    "in a cycle": (
        [_STEP | {"dependsOn": [1]}, _STEP | {"dependsOn": [2]}, _STEP | {"dependsOn": [0]}],
        "INVALID",
        ["steps", "0", "dependsOn"],
    ),
    "on one that is not there": (
        [_STEP | {"dependsOn": [7]}],
        "INVALID",
        ["steps", "0", "dependsOn"],
    ),
    "on one before all": ([_STEP | {"dependsOn": [-1]}], "INVALID", ["steps", "0", "dependsOn"]),
    "twice on one": (
        [_STEP, _STEP | {"dependsOn": [0, 0]}],
        "INVALID",
        ["steps", "1", "dependsOn"],
    ),
    "an unknown tool": ([_STEP | {"tool": "no_such"}], "NOT_FOUND", ["steps", "0", "tool"]),
    "arguments without a tool": ([_STEP | {"tool": None}], "INVALID", ["steps", "0", "arguments"]),
    "a missing argument": (
        [_STEP | {"arguments": {}}],
        "REQUIRED",
        ["steps", "0", "arguments", "query"],
    ),
    "an argument too many": (
        [_STEP | {"arguments": {"query": "a", "colour": "b"}}],
        "INVALID",
        ["steps", "0", "arguments", "colour"],
    ),
    "an argument of another type": (
        [_STEP | {"arguments": {"query": 7}}],
        "INVALID",
        ["steps", "0", "arguments", "query"],
    ),
    "arguments that are a list": (
        [_STEP | {"arguments": ["query"]}],
        "INVALID",
        ["steps", "0", "arguments"],
    ),
    "arguments that are a text": (
        [_STEP | {"arguments": "query"}],
        "INVALID",
        ["steps", "0", "arguments"],
    ),
    "a reference to a step not waited for": (
        [_STEP, _STEP | {"arguments": {"query": "{{steps.0.output}}"}}],
        "INVALID",
        ["steps", "1", "arguments"],
    ),
    "NaN": (
        [_STEP | {"arguments": {"query": "a", "first": math.nan}}],
        "INVALID",
        ["steps", "0", "arguments", "first"],
    ),
    "infinity": (
        [_STEP | {"arguments": {"query": "a", "first": math.inf}}],
        "INVALID",
        ["steps", "0", "arguments", "first"],
    ),
    "a huge number": (
        [_STEP | {"arguments": {"query": "a", "first": 10**400}}],
        "INVALID",
        ["steps", "0", "arguments"],
    ),
    "300 KB of arguments": (
        [_STEP | {"arguments": {"query": "x" * 300_000}}],
        "LIMIT",
        ["steps", "0", "arguments"],
    ),
    "5,000 levels": (
        [_STEP | {"arguments": {"query": nested(5_000)}}],
        "INVALID",
        ["steps", "0", "arguments"],
    ),
    "a NUL in a name": (
        [_STEP | {"arguments": {"query": "a", "a\x00": 1}}],
        "INVALID",
        ["steps", "0", "arguments"],
    ),
}


@pytest.mark.parametrize("what", STEPS)
async def test_a_plan_with_an_impossible_step_is_refused(world: World, what: str) -> None:
    steps, code, path = STEPS[what]
    before = await everything_stored(world.deps)

    answer = await world.api.raw(PLAN, world.owner, input={"title": "Trees", "steps": steps})

    assert_decent(answer)
    (error, *_) = errors_of(answer)
    assert error["code"] == code, error
    assert error["path"][: len(path) + 1] == ["input", *path], error
    if what == "in a cycle":
        assert "0 → 1 → 2 → 0" in error["message"]
    assert await everything_stored(world.deps) == before


async def test_every_step_at_fault_is_named(world: World) -> None:
    steps = [_STEP | {"tool": "no_such"}, _STEP, _STEP | {"description": ""}]

    answer = await world.api.raw(PLAN, world.owner, input={"title": "Trees", "steps": steps})

    assert [(e["code"], e["path"]) for e in errors_of(answer)] == [
        ("NOT_FOUND", ["input", "steps", "0", "tool"]),
        ("REQUIRED", ["input", "steps", "2", "description"]),
    ]


# ---- values of wrong types

WRONG_TYPES: dict[str, tuple[str, dict[str, Any]]] = {
    "a number for a text": ("conversationCreate", {"input": {"title": 7}}),
    "a list for a text": ("conversationCreate", {"input": {"title": ["a"]}}),
    "an unknown field": ("conversationCreate", {"input": {"colour": "red"}}),
    "a text for an input": ("conversationCreate", {"input": "title"}),
    "null for an input": ("conversationCreate", {"input": None}),
    "nothing for an input": ("conversationCreate", {}),
    "an unknown enum value": ("memoryCreate", {"input": {"content": "a", "type": "HEARSAY"}}),
    "a text for a number": ("memoryCreate", {"input": {"content": "a", "importance": "0.5"}}),
    "NaN for a number": ("memoryCreate", {"input": {"content": "a", "importance": math.nan}}),
    "infinity for a number": ("memoryCreate", {"input": {"content": "a", "importance": math.inf}}),
    "an object for an id": ("conversationDelete", {"id": {"a": 1}}),
    "true for an id": ("conversationDelete", {"id": True}),
    "null for an id": ("conversationDelete", {"id": None}),
    "a fraction for a whole number": (
        "planCreate",
        {"input": {"title": "a", "steps": [_STEP | {"dependsOn": [0.5]}]}},
    ),
    "a huge whole number": (
        "planCreate",
        {"input": {"title": "a", "steps": [_STEP | {"dependsOn": [2**31]}]}},
    ),
    "a text for bytes": ("sandboxCreate", {"input": {"resources": {"memoryBytes": "much"}}}),
    "a fraction for bytes": ("sandboxCreate", {"input": {"resources": {"memoryBytes": 1.5}}}),
    "true for bytes": ("sandboxCreate", {"input": {"resources": {"memoryBytes": True}}}),
    "huge bytes": ("sandboxCreate", {"input": {"resources": {"memoryBytes": 2**63}}}),
}


@pytest.mark.parametrize("what", WRONG_TYPES)
async def test_a_value_of_a_wrong_type_is_refused_before_anything_runs(
    world: World, what: str
) -> None:
    name, variables = WRONG_TYPES[what]

    answer = await world.api.raw(MUTATIONS[name].document, world.owner, **variables)

    assert_decent(answer)
    assert "data" not in answer or answer["data"] is None
    assert {e["extensions"]["code"] for e in answer["errors"]} == {"BAD_USER_INPUT"}


OUT_OF_RANGE = [
    ("memoryCreate", {"input": {"content": "a", "importance": -0.1}}, "importance"),
    ("memoryCreate", {"input": {"content": "a", "importance": 1.1}}, "importance"),
    ("memoryCreate", {"input": {"content": "a", "importance": 1e308}}, "importance"),
    ("memoryUpdate", {"id": "<Memory>", "input": {"importance": -5}}, "importance"),
]


@pytest.mark.parametrize(("name", "variables", "field"), OUT_OF_RANGE)
async def test_a_number_out_of_range_is_refused(
    world: World, name: str, variables: dict[str, Any], field: str
) -> None:
    before = await everything_stored(world.deps)

    answer = await world.api.raw(
        MUTATIONS[name].document, world.owner, **filled(world, "owner", variables)
    )

    assert_decent(answer)
    assert [(e["code"], e["path"]) for e in errors_of(answer)] == [("INVALID", ["input", field])]
    assert await everything_stored(world.deps) == before


# ---- queries

CONNECTIONS = [
    name for name, field in root("query").items() if "first" in field.args and "last" in field.args
]


@pytest.mark.parametrize("name", CONNECTIONS)
@pytest.mark.parametrize(
    "page", ["first: -1", "first: 101", "last: -1", "last: 101", "first: 1, last: 1"]
)
async def test_an_impossible_page_is_refused(world: World, name: str, page: str) -> None:
    answer = await world.api.raw(f"{{ {name}({page}) {{ nodes {{ __typename }} }} }}", world.owner)

    assert_decent(answer)
    assert [e["extensions"]["code"] for e in answer["errors"]] == ["BAD_USER_INPUT"]
    assert answer["data"] is None


async def test_an_impossible_page_within_an_object_is_refused(world: World) -> None:
    answer = await world.api.raw(
        "query($id: ID!) { conversation(id: $id) { messages(first: 101) { nodes { id } } } }",
        world.owner,
        id=world.of_owner["Conversation"],
    )
    assert_decent(answer)
    assert [e["extensions"]["code"] for e in answer["errors"]] == ["BAD_USER_INPUT"]


def _cursor(*values: Any) -> str:
    """Make a cursor of values as if a list had made it."""

    class Row:
        def __getattr__(self, name: str) -> Any:
            return values[int(name[1:])] if name != "id" else values[-1]

    return Order(tuple(f"v{i}" for i in range(len(values) - 1))).cursor(Row())


CURSORS = {
    "empty": "",
    "no base64": "%%%",
    "no JSON": "AAAA",
    "emoji": "🦆",
    "10 KB": "A" * 10_240,
    "NUL": "\x00",
    "a subscription's": "WyJhYmNkIiwwLHt9XQ",
    "one value": _cursor("cnv_1"),
    "two values": _cursor("2026-01-01T00:00:00+00:00", "cnv_1"),
    "three values": _cursor("a", "b", "c"),
    "a time without a zone": _cursor("2026-01-01T00:00:00", "cnv_1"),
    "a time at the edge": _cursor("0001-01-01T00:00:00+14:00", "cnv_1"),
    "a number": _cursor(2**63, "cnv_1"),
    "infinity": _cursor("Infinity", "cnv_1"),
    "NaN": _cursor("NaN", "cnv_1"),
    "an id in emoji": _cursor("2026-01-01T00:00:00+00:00", "🦆"),
    "only an id in emoji": _cursor("🦆"),
    "an id that is none": _cursor("2026-01-01T00:00:00+00:00", "' OR 1=1"),
    "null": _cursor(None, "cnv_1"),
    "a list": _cursor(["a"], "cnv_1"),
}
_ORDERS = {
    "memories": ["CREATED_AT_DESC", "UPDATED_AT_DESC", "IMPORTANCE_DESC", "ACCESS_COUNT_DESC"],
    "conversations": ["{field: UPDATED_AT}", "{field: CREATED_AT, direction: ASC}"],
}


@pytest.mark.parametrize("name", CONNECTIONS)
async def test_a_cursor_of_nobodys_is_refused_or_leads_nowhere(world: World, name: str) -> None:
    for order in _ORDERS.get(name, [""]):
        by = f", orderBy: {order}" if order else ""
        document = (
            f"query($c: String) {{ {name}(first: 5, after: $c{by}) {{ nodes {{ __typename }} }} }}"
        )
        refused = 0
        for what, cursor in CURSORS.items():
            for text in (document, document.replace("first: 5, after", "last: 5, before")):
                answer = await world.api.raw(text, world.owner, c=cursor)
                assert_decent(answer)
                if answer.get("errors"):
                    codes = [e["extensions"]["code"] for e in answer["errors"]]
                    assert codes == ["BAD_USER_INPUT"], (what, answer)
                    refused += 1
        assert refused >= 2 * 8, f"only {refused} cursors were refused"


ARGUMENTS = [
    (name, argument)
    for name, field in root("query").items()
    for argument, value in field.args.items()
    if isinstance(get_named_type(value.type), GraphQLScalarType)
    and get_named_type(value.type).name in ("ID", "String")
    and argument not in ("after", "before")
]


@pytest.mark.parametrize(("name", "argument"), ARGUMENTS, ids="-".join)
async def test_no_text_breaks_a_query(world: World, name: str, argument: str) -> None:
    field = root("query")[name]
    type_ = field.args[argument].type
    others = "".join(
        f", {other}: {'[]' if str(v.type).startswith('[') else chr(34) + 'a' + chr(34)}"
        for other, v in field.args.items()
        if other != argument and is_required_argument(v)
    )
    composite = get_named_type(field.type)
    is_connection = composite.name.endswith("Connection")
    inner = "nodes { __typename }" if is_connection else "__typename"
    document = f"query($v: {type_}) {{ {name}({argument}: $v{others}) {{ {inner} }} }}"
    for what, text in (TEXTS | IDS | WORDS).items():
        value = [text] * 3 if str(type_).startswith("[") else text
        answer = await world.api.raw(document, world.owner, v=value)
        assert_decent(answer)
        if answer.get("errors"):
            assert answer["errors"][0]["extensions"]["code"] in (
                "BAD_USER_INPUT",
                "REQUIRED",
                "LIMIT",
                "INVALID",
            ), (what, answer)


FILTERS: list[tuple[str, str, Any]] = [
    ("conversations", "ConversationFilter", {"titleContains": text}) for text in TEXTS.values()
] + [
    ("conversations", "ConversationFilter", {"titleContains": "%_\\" * 20_000}),
    ("memories", "MemoryFilter", {"importanceAtLeast": -1e308}),
    ("memories", "MemoryFilter", {"importanceAtLeast": 1e308}),
    ("memories", "MemoryFilter", {"types": []}),
    ("memories", "MemoryFilter", {"types": ["SEMANTIC"] * 1000}),
    ("memories", "MemoryFilter", {"createdAfter": "0001-01-01T00:00:00+14:00"}),
    ("memories", "MemoryFilter", {"createdBefore": "9999-12-31T23:59:59-14:00"}),
    ("memories", "MemoryFilter", {"createdBefore": "9999-12-31T23:59:59"}),
    ("memories", "MemoryFilter", {"createdBefore": "yesterday"}),
]


@pytest.mark.parametrize("index", range(len(FILTERS)))
async def test_no_filter_breaks_a_list(world: World, index: int) -> None:
    name, type_, value = FILTERS[index]
    answer = await world.api.raw(
        f"query($f: {type_}) {{ {name}(filter: $f) {{ nodes {{ id }} }} }}", world.owner, f=value
    )
    assert_decent(answer)


async def test_more_than_100_ids_at_once_are_refused(world: World) -> None:
    answer = await world.api.raw(
        "query($ids: [ID!]!) { nodes(ids: $ids) { id } }",
        world.owner,
        ids=[world.of_owner["Plan"]] * 101,
    )
    assert_decent(answer)
    assert answer["errors"][0]["extensions"]["code"] == "BAD_USER_INPUT"


# ---- subscriptions

EVENT_CURSORS = {
    "garbage": "garbage",
    "emoji": "🦆",
    "no JSON": "AAAA",
    "NUL": "\x00",
    "10 KB": "A" * 10_240,
    "a page's": _cursor("cnv_1"),
    "a negative number": _cursor("abcd", -1, {}),
    "a fraction": _cursor("abcd", 1.5, {}),
    "no offsets": _cursor("abcd", 1, []),
    "negative offsets": _cursor("abcd", 1, {"msg_1": -1}),
}


@pytest.mark.parametrize("name", sorted(n for n, s in SUBSCRIPTIONS.items() if s.is_resumable))
async def test_a_cursor_that_is_none_is_refused(world: World, name: str) -> None:
    expected = SUBSCRIPTIONS[name]
    document = (
        f"subscription({expected.variable}$c: String) {{ {name}({expected.given}after: $c) "
        "{ __typename cursor } }"
    )
    ids = {"id": world.of_owner[expected.type]} if expected.type else {}
    for what, cursor in EVENT_CURSORS.items():
        async with world.api.subscribe(document, world.owner, c=cursor, **ids) as stream:
            first = await stream.next()
            assert_decent([first, stream.refusal])
            if first is None:
                assert [e["extensions"]["code"] for e in stream.refusal] == ["BAD_USER_INPUT"], what
            else:
                # An execution's cursor of another form is an unknown one: it begins anew.
                assert first["__typename"].endswith("Reset"), what


@pytest.mark.parametrize("name", sorted(n for n, s in SUBSCRIPTIONS.items() if s.type))
async def test_no_id_breaks_a_subscription(world: World, name: str) -> None:
    expected = SUBSCRIPTIONS[name]
    document = f"subscription($id: ID!) {{ {name}({expected.argument}: $id) {expected.selection} }}"
    for what, id_ in IDS.items():
        async with world.api.subscribe(document, world.owner, id=id_) as stream:
            assert await stream.next() is None
            assert_decent(stream.refusal)
            assert [e["extensions"]["code"] for e in stream.refusal] == ["NOT_FOUND"], what
