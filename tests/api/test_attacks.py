"""Documents nobody means well with cost little, whatever they ask: CPU, memory and points.

Each is held against the introspection that every GraphiQL asks for, in the same process at the same
time, so that the machine's speed does not matter.
"""

import gc
import json
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from graphql import get_introspection_query

import schema
from app import graphql_budget
from resolvers.base import Context
from schema.execution import Engine, Prepared, Result
from services.accounts import rate_limits
from services.accounts.sessions import Client
from services.base import Deps
from tests.api.people import sign_up
from tests.fixtures import Person

GRAPH = schema.build()._schema
# Times what introspection takes when its document is new to the server.
CPU_FACTOR = 8
MIB = 1024 * 1024


def nested(levels: int) -> str:
    inner = "id"
    for _ in range(levels):
        inner = f"messages {{ nodes {{ conversation {{ {inner} }} }} }}"
    return f'{{ conversation(id: "c") {{ {inner} }} }}'


def explosion(levels: int) -> str:
    fragments = " ".join(
        f"fragment F{n} on User {{ ...F{n + 1} ...F{n + 1} a{n}: username }}" for n in range(levels)
    )
    return f"{{ viewer {{ ...F0 }} }} {fragments} fragment F{levels} on User {{ id }}"


def cycle(length: int) -> str:
    fragments = " ".join(
        f"fragment F{n} on User {{ id ...F{(n + 1) % length} }}" for n in range(length)
    )
    return f"{{ viewer {{ ...F0 }} }} {fragments}"


def deep_input(levels: int) -> Any:
    value: Any = {}
    for _ in range(levels):
        value = {"steps": [value]}
    return value


INTROSPECTION = get_introspection_query()
CREATE = "mutation($input: PlanCreateInput!) { planCreate(input: $input) { errors { code } } }"
NODES = "query($ids: [ID!]!) { nodes(ids: $ids) { id } }"
SEARCH = "query($q: String!) { memorySearch(query: $q) { score } }"
Attack = tuple[str, Any]
ATTACKS: dict[str, Callable[[], Attack]] = {
    "nesting within braces": lambda: ("{ viewer " * 2_000 + "}" * 2_000, None),
    "nesting beyond the parser": lambda: ("{" * 50_000, None),
    "nesting of lists": lambda: (nested(4), None),
    "nesting of pages": lambda: (nested(4).replace("messages", "messages(first: 100)"), None),
    "nesting of values": lambda: (f"{{ nodes(ids: {'[' * 2_000}{']' * 2_000}) {{ id }} }}", None),
    "nesting of types": lambda: (
        f"query($a: {'[' * 2_000}Int{']' * 2_000}) {{ viewer {{ id }} }}",
        None,
    ),
    "aliases": lambda: (
        "{ " + " ".join(f"a{n}: viewer {{ id }}" for n in range(1_500)) + " }",
        None,
    ),
    "aliases of searches": lambda: (
        "{ " + " ".join(f'a{n}: memorySearch(query: "x") {{ score }}' for n in range(30)) + " }",
        None,
    ),
    "the same field": lambda: ("{ viewer { " + "id " * 4_900 + "} }", None),
    "the same field with arguments": lambda: (
        "{ " + "conversations(first: 1) { nodes { id } } " * 500 + "}",
        None,
    ),
    "cycles of fragments": lambda: (cycle(150), None),
    "a fragment in itself": lambda: (cycle(1), None),
    "explosion of fragments": lambda: (explosion(60), None),
    "many fragments": lambda: (
        "{ viewer { id } } " + " ".join(f"fragment F{n} on User {{ id }}" for n in range(800)),
        None,
    ),
    "directives on one field": lambda: ("{ viewer { id " + "@a " * 2_400 + "} }", None),
    "directives that exist": lambda: (
        "{ viewer { " + "id @include(if: true) " * 600 + "} }",
        None,
    ),
    "huge lists": lambda: ("{ conversations(first: 2147483647) { nodes { id } } }", None),
    "huge ids": lambda: (NODES, {"ids": [f"cnv_{n}" for n in range(100_000)]}),
    "huge ids that are none": lambda: (NODES, {"ids": [None] * 100_000}),
    "the most ids there may be": lambda: (NODES, {"ids": [f"cnv_{n}" for n in range(9_999)]}),
    "the most ids that are none": lambda: (NODES, {"ids": [None] * 9_999}),
    "the most maps there may be": lambda: (CREATE, {"input": {"steps": [{}] * 9_998}}),
    "the most steps there may be": lambda: (
        CREATE,
        {"input": {"title": "t", "steps": [{"description": "d", "tool": "t"}] * 3_332}},
    ),
    "the most values of JSON": lambda: (
        CREATE,
        {"input": {"title": "t", "steps": [{"description": "d", "arguments": [[]] * 9_994}]}},
    ),
    "the most misspelt fields": lambda: (
        CREATE,
        {"input": {"steps": [{f"descriptio{n}": 1} for n in range(4_990)]}},
    ),
    "the most steps waited for": lambda: (
        CREATE,
        {"input": {"title": "t", "steps": [{"description": "d", "dependsOn": [0] * 9_994}]}},
    ),
    "huge ids in the document": lambda: (
        "{ nodes(ids: [" + ", ".join(f'"{n}"' for n in range(4_000)) + "]) { id } }",
        None,
    ),
    "introspection": lambda: (INTROSPECTION, None),
    "introspection in circles": lambda: (
        "{ __schema { types { fields { type { fields { type { fields { type { fields { type "
        "{ name } } } } } } } } } } }",
        None,
    ),
    "introspection again and again": lambda: (
        "{ " + " ".join(f"a{n}: __schema {{ types {{ name }} }}" for n in range(40)) + " }",
        None,
    ),
    "huge variables": lambda: (SEARCH, {"q": "x" * MIB}),
    "unknown variables": lambda: (SEARCH, {"q": "x", **{f"v{n}": n for n in range(50_000)}}),
    "deep input": lambda: (CREATE, {"input": deep_input(200)}),
    "wide input": lambda: (CREATE, {"input": {f"f{n}": n for n in range(50_000)}}),
    "huge number": lambda: (
        "{ conversations(first: " + "9" * 90_000 + ") { nodes { id } } }",
        None,
    ),
    "huge exponent": lambda: (
        "{ conversations(first: 1e" + "9" * 4_000 + ") { nodes { id } } }",
        None,
    ),
    "huge number among variables": lambda: (
        "query($n: Int) { conversations(first: $n) { nodes { id } } }",
        {"n": 10**4_000},
    ),
    "huge string": lambda: ('{ memorySearch(query: "' + "x" * 99_000 + '") { score } }', None),
    "huge block string": lambda: (
        '{ memorySearch(query: """' + "\n  x" * 20_000 + '""") { score } }',
        None,
    ),
    "huge name": lambda: ("{ " + "n" * 99_000 + " }", None),
    "many misspelt names": lambda: (
        "{ viewer { " + " ".join(f"conversation{n}" for n in range(1_400)) + " } }",
        None,
    ),
    "many unknown types": lambda: (
        "{ viewer { id } } "
        + " ".join(f"fragment F{n} on SandboxExecutio{n} {{ id }}" for n in range(190)),
        None,
    ),
    "commas": lambda: ("{ viewer { id" + "," * 99_000 + " } }", None),
    "comments": lambda: ("{ viewer { id } }" + "#\n" * 40_000, None),
    "byte order marks": lambda: ("\ufeff" * 30_000 + "{ viewer { id } }", None),
    "emoji": lambda: ('{ memorySearch(query: "' + "\U0001f986" * 24_000 + '") { score } }', None),
    "combining marks": lambda: (SEARCH, {"q": "e" + "\u0301" * 50_000}),
    "directional marks": lambda: (SEARCH, {"q": "\u202e\u2066" * 20_000}),
    "escapes": lambda: ('{ memorySearch(query: "' + "\\u0041" * 16_000 + '") { score } }', None),
    "half surrogates": lambda: (
        '{ memorySearch(query: "' + "\\uD83E" * 9_000 + '") { score } }',
        None,
    ),
    "operations": lambda: (
        " ".join(f"query Q{n} {{ viewer {{ id }} }}" for n in range(700)),
        None,
    ),
    "variables": lambda: (
        "query(" + " ".join(f"$v{n}: Int" for n in range(1_200)) + ") { viewer { id } }",
        None,
    ),
}


class Spending:
    """Runs operations on an engine of its own, and tells what each took."""

    def __init__(self, deps: Deps, who: Person) -> None:
        self.deps, self.who = deps, who
        self.engine = Engine(GRAPH, admit=graphql_budget.admit)

    async def run(self, query: str, variables: Any) -> dict[str, Any]:
        context = Context(self.deps, self.who.viewer, "test", Client("192.0.2.1"))
        graphql_budget.check(context)
        is_new = query not in self.engine.documents
        prepared = await self.engine.prepare_async(query, None, variables)
        is_refused = not isinstance(prepared, Prepared)
        await graphql_budget.charge_reading(context, query, is_new=is_new, is_refused=is_refused)
        if isinstance(prepared, Prepared):
            result = await self.engine.execute(prepared, context, timeout_s=60)
        else:
            result = Result.refused(prepared)
        return dict(json.loads(result.json()))

    async def cpu_s(self, query: str, variables: Any) -> tuple[float, dict[str, Any]]:
        """Give the CPU seconds of all threads of this process."""
        started = time.process_time()
        answer = await self.run(query, variables)
        return time.process_time() - started, answer


@pytest.fixture(scope="module")
def settled() -> Iterator[None]:
    """Do as a server does: what other tests have left is nothing that an attack goes through."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def database_url(tmp_path: Path) -> str:
    """One kind of database is enough: none of this gets as far."""
    return f"sqlite+aiosqlite:///{tmp_path / 'noosphere.sqlite3'}"


@pytest.fixture
async def spending(settled: None, deps: Deps) -> Spending:
    ann = await sign_up(deps, "ann")
    spending = Spending(deps, ann)
    # What is made once a process is made before anything is measured.
    for query in (INTROSPECTION, '{ memorySearch(query: "trees") { score } }'):
        assert "errors" not in await spending.run(query, None)
    return spending


@pytest.mark.parametrize("name", ATTACKS)
async def test_an_attack_costs_a_bounded_multiple_of_a_plain_query(
    spending: Spending, name: str
) -> None:
    query, variables = ATTACKS[name]()
    common = max([(await spending.cpu_s(f"{INTROSPECTION} # {n}", None))[0] for n in range(2)])
    before = await spent(spending)

    took, answer = await spending.cpu_s(query, variables)
    again, _ = await spending.cpu_s(query, variables)

    assert took < CPU_FACTOR * common, (took, common)
    # The second time something of it is known; it is never dearer by far.
    assert again < CPU_FACTOR * common, (again, common)
    # No more is said than about as much as was asked with, or introspection has to say.
    assert len(json.dumps(answer)) < 2 * MIB
    assert '"INTERNAL"' not in json.dumps(answer), answer["errors"]
    # What it took is paid for: a tenth of a millisecond costs a point, give or take a lot.
    assert await spent(spending) - before >= 2


async def spent(spending: Spending) -> int:
    budget = await rate_limits.budget(spending.deps, spending.who.viewer, None)
    assert budget is not None
    return budget.spent


@pytest.mark.parametrize("name", ATTACKS)
async def test_an_attack_takes_and_leaves_little_memory(spending: Spending, name: str) -> None:
    query, variables = ATTACKS[name]()
    tracemalloc.start()
    try:
        await spending.run(query, variables)
        before, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        for n in range(2):
            # Others of its kind: nothing of them is known yet.
            await spending.run(f"{query} # {n}", variables)
        after, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak - before < 64 * MIB, f"{(peak - before) / MIB:.1f} MiB at most"
    # Documents are kept within the room there is for them.
    assert after - before < 16 * MIB, f"{(after - before) / MIB:.1f} MiB left"


def test_the_caches_of_documents_stay_within_their_room() -> None:
    engine = Engine(GRAPH, cache_bytes=2 * MIB)
    for n in range(400):
        engine.prepare(f"query Q{n} {{ viewer {{ id username email displayName }} }}")
        engine.prepare(f"{{ nothing{n} }}")
    assert engine.documents.size_bytes <= 2 * MIB
    assert len(engine.documents) < 400


async def test_whoever_goes_on_attacking_is_soon_refused_unread(spending: Spending) -> None:
    await rate_limits.charge(spending.deps, spending.who.viewer, None, 500_000_000)
    prepared = spending.engine.documents.misses
    with pytest.raises(Exception, match="has spent all points"):
        await spending.run(ATTACKS["introspection"]()[0] + " # anew", None)
    assert spending.engine.documents.misses == prepared
