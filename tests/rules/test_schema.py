"""The contract keeps its conventions: everything described, named and shaped alike."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from graphql import (
    GraphQLEnumType,
    GraphQLField,
    GraphQLInputObjectType,
    GraphQLInterfaceType,
    GraphQLList,
    GraphQLNonNull,
    GraphQLObjectType,
    get_named_type,
    is_specified_directive,
    is_specified_scalar_type,
    print_schema,
)

import schema
from schema.base import ROW_TYPES

ROOT = Path(__file__).parents[2]
GRAPH = schema.build()._schema
OWN = {
    name: type_
    for name, type_ in GRAPH.type_map.items()
    if not name.startswith("__") and not is_specified_scalar_type(type_)
}
ROOTS = ("Query", "Mutation", "Subscription")
VERB = re.compile(
    "(Register|Create|Update|Delete|Send|Stop|Retry|Execute|Cancel|Refresh|Revoke|Set|Pause|Resume"
    "|Extend|Write|Remove|ChangePassword|Start|Signal|Resize|Kill|Rename|MakeDirectory|Open|Close"
    "|Share|Snapshot|Restore|Upload)$"
)
# What is of the moment alone has no log to resume from: it begins with all there is.
EPHEMERAL = {"conversationPresence", "sandboxUsage"}
# A directory that is not there has no list of files, not even an empty one; what does not run has
# none of processes.
NULLABLE_LISTS = {"Sandbox.files", "Sandbox.processes"}


def fields() -> Iterator[tuple[str, GraphQLField]]:
    for name, type_ in OWN.items():
        if isinstance(type_, GraphQLObjectType | GraphQLInterfaceType):
            for field_name, field in type_.fields.items():
                yield f"{name}.{field_name}", field


def test_everything_is_described() -> None:
    bare = [name for name, type_ in OWN.items() if not type_.description and name not in ROOTS]
    for name, field in fields():
        if not field.description:
            bare.append(name)
        bare += [f"{name}({arg})" for arg, value in field.args.items() if not value.description]
    for name, type_ in OWN.items():
        if isinstance(type_, GraphQLInputObjectType):
            bare += [f"{name}.{f}" for f, value in type_.fields.items() if not value.description]
        if isinstance(type_, GraphQLEnumType):
            bare += [f"{name}.{v}" for v, value in type_.values.items() if not value.description]
    bare += [
        f"@{directive.name}"
        for directive in GRAPH.directives
        if not is_specified_directive(directive) and not directive.description
    ]
    assert bare == []


def test_descriptions_are_sentences() -> None:
    odd = [
        name
        for name, field in fields()
        if field.description
        and (not field.description.rstrip().endswith((".", ")")) or field.description[0].islower())
    ]
    assert odd == []


def test_the_committed_schema_is_the_one_the_code_states() -> None:
    committed = (ROOT / "schema" / "schema.graphql").read_text()
    stated = subprocess.run(
        [sys.executable, "-m", "app", "schema"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    ).stdout
    assert committed == stated, "run `python -m app schema > schema/schema.graphql`"


def test_every_plain_attribute_exists_on_its_row() -> None:
    missing = [
        f"{type_.__name__}.{field.python_name}"
        for row, type_ in ROW_TYPES.items()
        for field in type_.__strawberry_definition__.fields  # type: ignore[attr-defined]
        if field.base_resolver is None and field.python_name not in row.Row._fields  # type: ignore[attr-defined]
    ]
    assert missing == []


def test_a_mutation_takes_its_input_and_gives_its_payload() -> None:
    assert GRAPH.mutation_type is not None
    for name, field in GRAPH.mutation_type.fields.items():
        pascal = name[0].upper() + name[1:]
        assert VERB.search(name), f"{name}: noun first, verb last"
        assert str(field.type) == f"{pascal}Payload!", name
        assert set(field.args) <= {"id", "input", "refreshToken", "seconds"}, name
        if "input" in field.args:
            assert str(field.args["input"].type).rstrip("!") == f"{pascal}Input", name


def test_of_a_payload_only_the_errors_are_certain() -> None:
    payloads = {n: t for n, t in OWN.items() if n.endswith("Payload")}
    assert payloads
    for name, type_ in payloads.items():
        assert isinstance(type_, GraphQLObjectType)
        assert str(type_.fields["errors"].type) == "[UserError!]!", name
        sure = [f for f, v in type_.fields.items() if isinstance(v.type, GraphQLNonNull)]
        assert sure == ["errors"], name


def test_a_change_of_one_thing_may_leave_every_field_out() -> None:
    updates = {n: t for n, t in OWN.items() if n.endswith("UpdateInput")}
    assert updates
    for name, type_ in updates.items():
        assert isinstance(type_, GraphQLInputObjectType)
        sure = [f for f, v in type_.fields.items() if isinstance(v.type, GraphQLNonNull)]
        assert sure == [], name


def test_connections_are_relays() -> None:
    connections = {n: t for n, t in OWN.items() if n.endswith("Connection")}
    assert connections
    for name, type_ in connections.items():
        assert isinstance(type_, GraphQLObjectType)
        entry = name.removesuffix("Connection")
        assert str(type_.fields["edges"].type) == f"[{entry}Edge!]!", name
        assert str(type_.fields["nodes"].type) == f"[{entry}!]!", name
        assert str(type_.fields["pageInfo"].type) == "PageInfo!", name
    for name, field in fields():
        if get_named_type(field.type).name in connections:
            paging = {a: str(field.args[a].type) for a in ("first", "after", "last", "before")}
            assert paging == {"first": "Int", "after": "String", "last": "Int", "before": "String"}
            assert isinstance(field.type, GraphQLNonNull), name


def test_lists_hold_no_nulls_and_are_never_null() -> None:
    loose = []
    for name, field in fields():
        type_ = field.type
        bare = type_.of_type if isinstance(type_, GraphQLNonNull) else type_
        if not isinstance(bare, GraphQLList):
            continue
        if not isinstance(type_, GraphQLNonNull) or not isinstance(bare.of_type, GraphQLNonNull):
            loose.append(name)
    # An absent object keeps its place in the list.
    assert set(loose) == NULLABLE_LISTS | {"Query.nodes"}


@pytest.mark.parametrize("kind", ["names", "times", "booleans", "references"])
def test_fields_are_named_alike(kind: str) -> None:
    odd = []
    for name, field in fields():
        own = name.split(".")[1]
        type_ = get_named_type(field.type).name
        is_odd = {
            "names": not re.fullmatch(r"[a-z][a-zA-Z0-9]*", own) or own.startswith("get"),
            "times": (type_ == "DateTime") != bool(re.search(r"(At|From|Until)$", own)),
            "booleans": type_ == "Boolean" and not re.match(r"(is|has)[A-Z]", own),
            "references": own.endswith(("Id", "Ids")),
        }[kind]
        if is_odd:
            odd.append(name)
    assert odd == []


def test_events_carry_a_cursor_and_every_subscription_can_be_resumed() -> None:
    assert GRAPH.subscription_type is not None
    for name, field in GRAPH.subscription_type.fields.items():
        if name in EPHEMERAL:
            assert "after" not in field.args, name
            continue
        event = get_named_type(field.type)
        assert isinstance(event, GraphQLInterfaceType), name
        assert event.name.endswith("Event"), name
        assert str(event.fields["cursor"].type) == "String!", name
        assert str(field.args["after"].type) == "String", name
        kinds = [t.name for t in GRAPH.get_implementations(event).objects]
        assert any(kind.endswith("Reset") for kind in kinds), name


# The names clients and measurements rely on, as the contract fixes them.
FIXED = {
    "Query": "viewer node nodes conversation conversations plan planExecution memory memorySearch "
    "sandbox sandboxExecution sandboxTemplates",
    "User": "id username displayName email conversations plans memories sandboxes createdAt",
    "Conversation": "id title status user messages createdAt updatedAt",
    "Message": "id role content status conversation author toolCalls createdAt",
    "Plan": "id title description status steps executions",
    "PlanStep": "id orderIndex description status dependsOn",
    "Memory": "id type content importance accessCount lastAccessedAt related",
    "Sandbox": "id status template workspace resources security files executions ports expiresAt",
    "SandboxExecution": "id command status exitCode reason stdout stderr startedAt completedAt "
    "resourceUsage",
    "Mutation": "userRegister sessionCreate sessionRefresh sessionRevoke conversationCreate "
    "messageSend messageStop memoryCreate planCreate planExecute planExecutionCancel sandboxCreate "
    "sandboxExecute sandboxExecutionCancel sandboxPause sandboxResume sandboxStop sandboxDelete "
    "sandboxFileWrite",
    "Subscription": "conversationEvents sandboxExecutionOutput planExecutionEvents viewerEvents "
    "conversationPresence",
    "AuthSession": "token refreshToken expiresAt",
    "MemoryMatch": "memory score",
    "MessageDelta": "message offset text cursor",
    "SandboxOutputChunk": "stream text bytes cursor",
    "SandboxExecutionExited": "execution cursor",
    "PlanStepStarted": "step cursor",
    "PlanStepFinished": "step cursor",
    "PlanExecutionFinished": "execution cursor",
    "ConversationReset": "conversation cursor",
}


@pytest.mark.parametrize("name", sorted(FIXED))
def test_the_fixed_names_stand(name: str) -> None:
    type_ = GRAPH.type_map[name]
    assert isinstance(type_, GraphQLObjectType)
    assert set(FIXED[name].split()) <= set(type_.fields)


def test_the_schema_can_be_printed_and_is_stable() -> None:
    assert print_schema(GRAPH) == print_schema(GRAPH)
