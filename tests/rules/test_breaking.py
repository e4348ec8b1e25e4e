"""The contract grows, and takes nothing back without saying so in the CHANGELOG."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

import schema
from tests.rules.breaking import breaking_changes

ROOT = Path(__file__).parents[2]
SDL = "schema/schema.graphql"


def _git(*arguments: str) -> str | None:
    git = shutil.which("git")
    if git is None:
        return None
    done = subprocess.run(
        [git, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    return done.stdout if done.returncode == 0 else None


def released() -> tuple[str, str] | None:
    """Give the last release's tag and schema; None before the first."""
    tag = _git("describe", "--tags", "--abbrev=0", "--match", "v*")
    if tag is None:
        return None
    sdl = _git("show", f"{tag.strip()}:{SDL}")
    return None if sdl is None else (tag.strip(), sdl)


def unreleased(changelog: str) -> str:
    """Give what the CHANGELOG says of changes and removals since the last release."""
    section = changelog.partition("## [Unreleased]")[2].partition("\n## ")[0]
    parts = re.split(r"^### ", section, flags=re.MULTILINE)
    return "\n".join(part for part in parts if part.startswith(("Changed", "Removed")))


def unspoken(breaks: list[str], changelog: str) -> list[str]:
    """Give those breaking changes that the CHANGELOG does not name under Changed or Removed.

    A change is named by the type, field or value it is about, such as `User.email`.
    """
    said = unreleased(changelog)
    return [text for text in breaks if f"`{subject(text)}`" not in said]


def subject(description: str) -> str:
    """Give what a description of graphql-core is about."""
    found = re.search(r"\b([A-Z]\w*\.\w+)", description)
    if found:
        return found[1]
    words = re.match(r"(?:An? .*?(?:arg|field|value|directive) )?(\w+)", description)
    removed = re.match(r"(\w+) was removed from (?:enum|union) type (\w+)\.", description)
    if removed:
        return f"{removed[2]}.{removed[1]}"
    added = re.match(r"A required field (\w+) on input type (\w+) was added\.", description)
    if added:
        return f"{added[2]}.{added[1]}"
    return words[1] if words else description


def test_nothing_is_taken_back_without_a_word() -> None:
    last = released()
    if last is None:
        pytest.skip("there is no release yet whose clients could break")
    tag, sdl = last
    breaks = breaking_changes(sdl, schema.build()._schema)
    silent = unspoken(breaks, (ROOT / "CHANGELOG.md").read_text())
    assert silent == [], f"since {tag}; name them in CHANGELOG.md under Changed or Removed"


BEFORE = """
interface Node { id: ID! }
enum Color { RED GREEN }
union Found = A | B
input In { a: Int b: String }
type A implements Node { id: ID! name: String size: Int! tags: [String!]! }
type B { id: ID! }
type Query { a(id: ID, n: Int = 3): A found: Found color: Color take(input: In): Int old: String }
"""


@pytest.mark.parametrize(
    ("was", "became", "told", "about"),
    [
        (" old: String", "", "Query.old was removed.", "Query.old"),
        (" name: String", "", "A.name was removed.", "A.name"),
        (
            "name: String",
            "name: Int",
            "A.name changed type from String to Int.",
            "A.name",
        ),
        ("size: Int!", "size: Int", "A.size changed type from Int! to Int.", "A.size"),
        (
            "tags: [String!]!",
            "tags: [String]!",
            "A.tags changed type from [String!]! to [String]!.",
            "A.tags",
        ),
        (
            "a(id: ID, n: Int = 3)",
            "a(id: ID, n: Int = 3, m: Int!)",
            "A required arg m on Query.a was added.",
            "Query.a",
        ),
        ("a(id: ID, n: Int = 3)", "a(n: Int = 3)", "Query.a arg id was removed.", "Query.a"),
        (
            "a(id: ID,",
            "a(id: ID!,",
            "Query.a arg id has changed type from ID to ID!.",
            "Query.a",
        ),
        (
            "a(id: ID,",
            "a(id: Int,",
            "Query.a arg id has changed type from ID to Int.",
            "Query.a",
        ),
        (
            "enum Color { RED GREEN }",
            "enum Color { RED }",
            "GREEN was removed from enum type Color.",
            "Color.GREEN",
        ),
        (
            "union Found = A | B",
            "union Found = A",
            "B was removed from union type Found.",
            "Found.B",
        ),
        ("input In { a: Int b", "input In { b", "In.a was removed.", "In.a"),
        ("{ a: Int b", "{ a: Int! b", "In.a changed type from Int to Int!.", "In.a"),
        (
            "input In {",
            "input In { c: Int!",
            "A required field c on input type In was added.",
            "In.c",
        ),
        (
            "type A implements Node",
            "type A",
            "A no longer implements interface Node.",
            "A",
        ),
        (
            "enum Color { RED GREEN }",
            "scalar Color",
            "Color changed from an Enum type to a Scalar type.",
            "Color",
        ),
    ],
)
def test_what_breaks_clients_is_found_and_must_be_named(
    was: str, became: str, told: str, about: str
) -> None:
    assert was in BEFORE
    after = BEFORE.replace(was, became, 1)
    breaks = breaking_changes(BEFORE, after)
    assert breaks == [told]
    assert subject(told) == about
    changelog = "# Changelog\n\n## [Unreleased]\n\n### {}\n\n- Took back `{}`.\n\n## [0.1.0]\n"
    assert unspoken(breaks, changelog.format("Added", about)) == breaks
    assert unspoken(breaks, changelog.format("Removed", "Other.thing")) == breaks
    assert unspoken(breaks, changelog.format("Removed", about)) == []
    assert unspoken(breaks, "## [Unreleased]\n\n## [0.1.0]\n\n### Removed\n\n- `" + about) == breaks


@pytest.mark.parametrize(
    ("was", "became"),
    [
        ("old: String", "old: String new: Int"),
        ("old: String", "old: String!"),
        ("old: String", 'old: String @deprecated(reason: "Use `a`.")'),
        ("a(id: ID,", "a(id: ID, m: Int,"),
        ("a(id: ID,", "a(id: ID, m: Int! = 1,"),
        ("RED GREEN", "RED GREEN BLUE"),
        ("input In {", "input In { c: Int"),
        ("input In {", "input In { c: Int! = 1"),
        ("A | B", "B | A"),
    ],
)
def test_what_is_added_breaks_nobody(was: str, became: str) -> None:
    assert was in BEFORE
    assert breaking_changes(BEFORE, BEFORE.replace(was, became, 1)) == []


def test_the_committed_schema_breaks_none_of_its_own_clients() -> None:
    assert breaking_changes((ROOT / SDL).read_text(), schema.build()._schema) == []


def test_a_field_less_in_the_committed_schema_is_found() -> None:
    sdl = (ROOT / SDL).read_text()
    gone = re.sub(r'  """E-mail address, lower case\."""\n  email: String!\n', "", sdl)
    assert gone != sdl
    assert breaking_changes(sdl, gone) == ["User.email was removed."]
