"""docs/realtime.md itself: its operations, its diagram, and what its tables say."""

import re
import xml.etree.ElementTree as ET
from collections import Counter

from graphql import parse, validate

import app.graphql_protocol as protocol
import schema
from tests.api.clients import blocks

_SVG = "{http://www.w3.org/2000/svg}"
_DIAGRAM = blocks.PAGE.parent / "realtime-client.svg"


def test_its_operations_are_valid() -> None:
    graph = schema.build()._schema
    operations = [
        *re.findall(
            r"^(?:EVENTS = \"\"\"|export const CONVERSATION_EVENTS = `)\n(.*?)[`\"]",
            blocks.text(),
            re.MULTILINE | re.DOTALL,
        ),
        *(
            operation
            for code in blocks.blocks("graphql")
            for operation in re.split(r"\n\n(?=subscription|mutation|query)", code)
        ),
    ]
    assert len(operations) > 2
    for operation in operations:
        assert validate(graph, parse(operation)) == [], operation


def test_the_drawn_diagram_says_what_the_written_one_says() -> None:
    (mermaid,) = blocks.blocks("mermaid")
    written = [
        (start, end, label or "")
        for start, end, label in re.findall(
            r"^  (\S+) --> (\w+|\[\*\])(?:: (.+))?$", mermaid, re.MULTILINE
        )
    ]
    drawn: list[tuple[str, str, list[str]]] = []
    for element in ET.parse(_DIAGRAM).getroot():  # noqa: S314 - it is our own.
        if edge := element.get("data-edge"):
            start, end = edge.split(" ")
            drawn.append((start, end, []))
        elif element.tag == f"{_SVG}text":
            drawn[-1][2].append(element.text or "")
    assert len(written) == mermaid.count("-->")
    assert Counter((a, b, " ".join(words)) for a, b, words in drawn) == Counter(written)


def test_its_table_names_every_code_a_socket_is_closed_with() -> None:
    known = {
        value
        for name, value in vars(protocol).items()
        if name.isupper() and isinstance(value, int) and value > 1000
    }
    told = {int(code) for code in re.findall(r"^\| `(\d{4})` \|", blocks.text(), re.MULTILINE)}
    assert told == known


def test_what_it_links_to_is_there() -> None:
    headings = {
        re.sub(r"[^\w -]", "", title).strip().lower().replace(" ", "-")
        for title in re.findall(r"^#+ (.+)$", blocks.text(), re.MULTILINE)
    }
    links = re.findall(r"\]\(([^)\s]+)\)", blocks.text())
    assert links
    for link in links:
        file, _, anchor = link.partition("#")
        assert file == "" or (blocks.PAGE.parent / file).exists(), link
        assert anchor == "" or anchor in headings or file != "", link
