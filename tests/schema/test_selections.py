"""What is answered without an executor is what the executor answers, to the byte.

Selections are made up at random over all types of events. What they need is told by the made-up
tree itself: plain attributes and the id of the one node an event is about are answered from the
event, and for everything else there is no answer but the executor's.
"""

import asyncio
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
from graphql import (
    ExecutionResult,
    GraphQLObjectType,
    GraphQLSchema,
    execute,
    get_named_type,
    is_leaf_type,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import schema
from app.runtime import running
from resolvers.base import Context
from schema import conversations, plans, sandboxes, viewer
from schema.execution import Engine, Prepared, encode
from schema.execution.selections import Selections
from services.changes import ChangeKind
from services.sandboxes.recording import OutputStream
from tests.api.access.world import World, build
from tests.fixtures import settings_for

EXAMPLES = max(500, int(os.environ.get("NOOSPHERE_TEST_EXAMPLES", "0")))
FIELDS = {
    "ConversationEvent": 'conversationEvents(conversationId: "cnv_1")',
    "PlanExecutionEvent": 'planExecutionEvents(executionId: "exe_1")',
    "SandboxOutputEvent": 'sandboxExecutionOutput(executionId: "sex_1")',
    "ViewerEvent": "viewerEvents",
}
# What an event has in itself, and the nodes it surely knows the id of.
PLAIN = {
    "MessageDelta": {"offset", "text"},
    "ConversationDeleted": {"id"},
    "PlanStepOutput": {"offset", "text"},
    "SandboxOutputChunk": {"stream", "text"},
    **{
        f"{kind}Changed": {"id", "change"} for kind in ("Conversation", "Plan", "Sandbox", "Memory")
    },
}
KNOWN = {
    **dict.fromkeys(
        [
            "MessageAdded",
            "MessageDelta",
            "MessageCompleted",
            "MessageFailed",
            "ToolCallStarted",
            "ToolCallFinished",
        ],
        "message",
    ),
    **dict.fromkeys(["PlanStepStarted", "PlanStepOutput", "PlanStepFinished"], "stepExecution"),
}


# ---- made-up selections


@dataclass
class Part:
    """One selection: a field with what is below it, or a fragment with what is in it."""

    name: str
    alias: str = ""
    directive: str = ""
    below: list["Part"] = field(default_factory=list)
    # Of a fragment: the type it is for ("" for none), and whether it is spread by name.
    is_fragment: bool = False
    is_named: bool = False

    @property
    def is_included(self) -> bool:
        """Whether its directive lets it be."""
        return self.directive not in (
            "@skip(if: true)",
            "@include(if: false)",
            "@skip(if: $yes)",
            "@include(if: $no)",
        )

    @property
    def key(self) -> str:
        """The name it is answered under."""
        return self.alias or self.name

    def text(self, fragments: list[str]) -> str:
        """Write it down; fragments with names go to the list."""
        below = " ".join(part.text(fragments) for part in self.below)
        if not self.is_fragment:
            head = f"{self.alias}: {self.name}" if self.alias else self.name
            return (
                f"{head} {self.directive} {{ {below} }}"
                if self.below
                else (f"{head} {self.directive}")
            )
        if self.is_named and self.name:
            name = f"F{len(fragments)}"
            fragments.append(f"fragment {name} on {self.name} {{ {below} }}")
            return f"...{name} {self.directive}"
        return f"... {f'on {self.name}' if self.name else ''} {self.directive} {{ {below} }}"


def applied(parts: Iterable[Part], names: set[str]) -> Iterator[Part]:
    """Give the fields that are asked for of a type that goes by these names."""
    for part in parts:
        if not part.is_included:
            continue
        if not part.is_fragment:
            yield part
        elif not part.name or part.name in names:
            yield from applied(part.below, names)


def is_covered(parts: list[Part], kind: str, interface: str) -> bool:
    """Tell whether an event has everything in itself that is asked of it."""
    nodes: dict[str, list[Part]] = {}
    for part in applied(parts, {kind, interface}):
        if part.name in {"cursor", "__typename"} | PLAIN.get(kind, set()):
            continue
        if part.name != KNOWN.get(kind):
            return False
        nodes.setdefault(part.key, []).extend(part.below)
    known = {"message": "Message", "stepExecution": "PlanStepExecution"}.get(KNOWN.get(kind, ""))
    return all(
        inner.name in ("id", "__typename")
        for below in nodes.values()
        for inner in applied(below, {str(known), "Node"})
    )


SCHEMA: GraphQLSchema = schema.build()._schema
KINDS: list[tuple[str, str]] = [
    (possible.name, interface)
    for interface in FIELDS
    for possible in SCHEMA.get_possible_types(SCHEMA.type_map[interface])  # type: ignore[arg-type]
]
DIRECTIVES = st.sampled_from(
    [""] * 16
    + [
        f"@{name}(if: {value})"
        for name in ("skip", "include")
        for value in ("true", "false", "$yes", "$no")
    ]
)


def _fields(type_: str) -> dict[str, Any]:
    found: dict[str, Any] = cast("GraphQLObjectType", SCHEMA.type_map[type_]).fields
    return found


def _below(type_: str, name: str) -> str:
    """Give the type of the nodes a field leads to; empty for plain values."""
    found = get_named_type(_fields(type_)[name].type)
    return "" if is_leaf_type(found) else str(found.name)


@st.composite
def made_up(draw: st.DrawFn, on: str, kind: str, interface: str, depth: int = 0) -> Part:
    """Make up a selection `on` a type, of which there is an event of a `kind`."""
    if depth < 3 and draw(st.integers(0, 9)) < (7 if on == interface else 2):
        others = [name for name, of in KINDS if of == interface]
        wider = [kind] * 6 + others if on == interface else [on]
        condition = draw(st.sampled_from([*wider, interface, ""]))
        below = draw(
            st.lists(made_up(condition or on, kind, interface, depth + 1), min_size=1, max_size=4)
        )
        return Part(condition, "", draw(DIRECTIVES), below, True, draw(st.booleans()))
    # What an event has in itself is made up more often than what it has not.
    likely = {"cursor", KNOWN.get(on, ""), *PLAIN.get(on, ())} & _fields(on).keys()
    names = ["__typename", *sorted(likely) * 4, *_fields(on)]
    name = draw(st.sampled_from(names))
    node = "" if name == "__typename" else _below(on, name)
    below = draw(st.lists(of_node(node), min_size=1, max_size=3)) if node else []
    return Part(name, draw(_aliases(name)), draw(DIRECTIVES), below)


@st.composite
def of_node(draw: st.DrawFn, type_: str, depth: int = 0) -> Part:
    """Make up a selection of a node: mostly of its id."""
    if depth < 2 and draw(st.integers(0, 3)) == 0:
        condition = draw(st.sampled_from([type_, "Node", ""]))
        below = draw(st.lists(of_node(type_, depth + 1), min_size=1, max_size=3))
        return Part(condition, "", draw(DIRECTIVES), below, True, draw(st.booleans()))
    is_rich = draw(st.integers(0, 9)) == 0 and "status" in _fields(type_) and depth == 0
    name = "status" if is_rich else draw(st.sampled_from(["id", "id", "__typename"]))
    return Part(name, draw(_aliases(name)), draw(DIRECTIVES))


def _aliases(name: str) -> st.SearchStrategy[str]:
    """Make up another name, never one that stands for another field."""
    stem = name.strip("_")
    return st.sampled_from(["", "", f"{stem}_a", f"{stem}_b"])


@st.composite
def asked(draw: st.DrawFn) -> tuple[str, str, str, list[Part]]:
    """Make up a document: the event and its interface, the text, and the selection."""
    kind, interface = draw(st.sampled_from(KINDS))
    parts = draw(st.lists(made_up(interface, kind, interface), min_size=1, max_size=4))
    fragments: list[str] = []
    body = " ".join(part.text(fragments) for part in parts)
    # Variables must be used, whatever was made up.
    body += " ... @skip(if: $no) { ... @include(if: $yes) { cursor } }"
    parts = [*parts, Part("cursor")]
    alias = draw(st.sampled_from(["", "live: "]))
    root = f"{alias}{FIELDS[interface]} {{ {body} }}"
    if draw(st.booleans()):
        fragments.append(f"fragment Root on Subscription {{ {root} }}")
        root = "...Root"
    head = "subscription($yes: Boolean! = true, $no: Boolean! = false)"
    return kind, interface, f"{head} {{ {root} }} {' '.join(fragments)}", parts


# ---- events


TEXTS = st.text(st.characters(codec=None), max_size=20) | st.sampled_from(
    ["", "a\ud83d", "\udc00\ud800", "\x00\u2028\U0001f600"]
)


@st.composite
def event_of(draw: st.DrawFn, kind: str, ids: dict[str, str]) -> Any:
    """Make up an event; now and then something is missing that must not be."""
    cursor = draw(TEXTS)
    text = draw(TEXTS | st.none()) if draw(st.integers(0, 9)) == 0 else draw(TEXTS)
    offset = draw(st.integers(0, 2**31 - 1))
    message: dict[str, Any] = {"cursor": cursor, "message_id": ids["Message"]}
    step = {"cursor": cursor, "step_execution_id": ids["PlanStepExecution"]}
    change = {"cursor": cursor, "id": draw(TEXTS), "change": draw(st.sampled_from(ChangeKind))}
    grown = {"offset": offset, "text": text}
    values: dict[str, dict[str, Any]] = {
        "MessageDelta": message | grown,
        "ToolCallStarted": message | {"tool_call_id": ids["MessageToolCall"]},
        "ToolCallFinished": message | {"tool_call_id": ids["MessageToolCall"]},
        "ConversationDeleted": {"cursor": cursor, "id": ids["Conversation"]},
        "ConversationReset": {"cursor": cursor, "conversation_id": ids["Conversation"]},
        "PlanStepOutput": step | grown,
        "PlanStepStarted": step | {"step_id": ids["PlanStep"]},
        "PlanStepFinished": step | {"step_id": ids["PlanStep"]},
        "PlanExecutionFinished": {"cursor": cursor, "execution_id": ids["PlanExecution"]},
        "PlanExecutionReset": {"cursor": cursor, "execution_id": ids["PlanExecution"]},
        "SandboxOutputChunk": {
            "cursor": cursor,
            "stream": draw(st.sampled_from(OutputStream)),
            "text": text,
            "data": b"",
        },
        "SandboxExecutionExited": {"cursor": cursor, "execution": None},
        "SandboxOutputReset": {"cursor": cursor, "execution": None},
        "ViewerReset": {"cursor": cursor},
    }
    for name in ("Added", "Completed", "Failed"):
        values[f"Message{name}"] = message
    if kind not in values:
        values[kind] = change
    return _class(kind)(**values[kind])


def _class(kind: str) -> Any:
    for module in (conversations, plans, sandboxes, viewer):
        if hasattr(module, kind):
            return getattr(module, kind)
    raise AssertionError(kind)


# ---- the comparison


@dataclass(repr=False)
class Stage:
    """A process of the application with one of everything."""

    runner: asyncio.Runner
    world: World
    engine: Engine = field(default_factory=lambda: Engine(SCHEMA))
    covered: int = 0
    left: int = 0

    def compare(self, kind: str, interface: str, text: str, parts: list[Part], event: Any) -> None:
        prepared = self.engine.prepare(text)
        assert isinstance(prepared, Prepared), (prepared, text)
        found = Selections(SCHEMA, prepared).answer(event)
        if not is_covered(parts, kind, interface):
            assert found is None, text
            self.left += 1
            return
        executed = self.runner.run(self._execute(prepared, event))
        if executed.errors:
            # A value that must be there is missing: the executor knows how to say so.
            assert found is None, text
            return
        assert found == encode({"data": executed.data}), text
        self.covered += 1

    async def _execute(self, prepared: Prepared, event: Any) -> ExecutionResult:
        context = Context(self.world.deps, self.world.owner.viewer, "test")
        result = execute(SCHEMA, prepared.document.node, event, context)
        return result if isinstance(result, ExecutionResult) else await result


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with asyncio.Runner() as runner:
        opened = running(settings_for(tmp_path_factory.mktemp("stage")))
        deps = runner.run(opened.__aenter__())
        try:
            yield Stage(runner, runner.run(build(deps)))
        finally:
            runner.run(opened.__aexit__(None, None, None))


def test_what_is_answered_without_an_executor_is_what_the_executor_answers(stage: Stage) -> None:
    @given(data=st.data())
    @settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
    def compare(data: st.DataObject) -> None:
        kind, interface, text, parts = data.draw(asked())
        event = data.draw(event_of(kind, stage.world.of_owner))
        stage.compare(kind, interface, text, parts, event)

    compare()
    # Or what was made up was too dull to show anything.
    assert min(stage.covered, stage.left) > EXAMPLES / 20


@pytest.mark.parametrize(("kind", "interface"), KINDS)
def test_every_event_is_covered_by_what_it_has_in_itself_and_not_by_anything_else(
    stage: Stage, kind: str, interface: str
) -> None:
    own = {"cursor", "__typename", *PLAIN.get(kind, ())}
    prepared = stage.engine.prepare(_document(kind, interface, own, KNOWN.get(kind)))
    assert isinstance(prepared, Prepared), prepared
    assert Selections(SCHEMA, prepared).covers(_class(kind))
    for name in _fields(kind).keys() - own:
        asked_for = name if not (below := _below(kind, name)) else f"{name} {{ __typename }}"
        prepared = stage.engine.prepare(_document(kind, interface, {asked_for}, None))
        assert isinstance(prepared, Prepared), (prepared, below)
        is_known = name == KNOWN.get(kind)
        assert Selections(SCHEMA, prepared).covers(_class(kind)) == is_known, name


def _document(kind: str, interface: str, names: set[str], node: str | None) -> str:
    inside = " ".join(sorted(names)) + (f" {node} {{ id __typename }}" if node else "")
    return f"subscription {{ {FIELDS[interface]} {{ ... on {kind} {{ {inside} }} }} }}"
