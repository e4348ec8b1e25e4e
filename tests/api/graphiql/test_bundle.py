"""The committed bundle: built from these sources, complete, and served as it should be."""

import re
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.testclient import TestClient

from app.graphiql import (
    CONTENT_SECURITY_POLICY,
    DIST,
    ROOT,
    SOURCES,
    Assets,
    digests,
    manifest,
    page,
)

REBUILD = "run `npm ci && npm run build` in app/graphiql and commit dist/"


@pytest.fixture
def assets() -> TestClient:
    return TestClient(Starlette(routes=[Mount("/graphiql", Assets())]))


def test_the_bundle_was_built_from_the_current_sources() -> None:
    assert manifest()["sources"] == digests(ROOT, SOURCES), REBUILD


def test_the_bundle_holds_exactly_the_files_of_its_manifest() -> None:
    names = tuple(sorted(path.name for path in DIST.iterdir() if path.name != "manifest.json"))
    assert manifest()["files"] == digests(DIST, names), REBUILD


def test_both_sides_hash_the_same_sources() -> None:
    text = (ROOT / "build" / "manifest.js").read_text(encoding="utf-8")
    declared = re.search(r"SOURCES = \[(.*?)\]", text, re.DOTALL)
    assert declared is not None
    assert tuple(re.findall(r'"([^"]+)"', declared.group(1))) == SOURCES


def test_a_new_build_gives_the_committed_bytes(npm_project: Path) -> None:
    subprocess.run(["npm", "run", "build"], cwd=npm_project, check=True, timeout=150)
    rebuilt = npm_project / "dist"
    assert digests(rebuilt, ("assets",)) == digests(DIST, ("assets",)), REBUILD


def test_the_sources_pass_their_types_and_their_own_tests(npm_project: Path) -> None:
    for script in ("typecheck", "test"):
        done = subprocess.run(
            ["npm", "run", script],
            cwd=npm_project,
            capture_output=True,
            text=True,
            timeout=150,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr


class _Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.urls: list[str] = []
        self.inline: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.urls += [url for name in ("src", "href") if (url := values.get(name))]
        if tag in {"script", "style"} and "src" not in values:
            self.inline.append(tag)
        self.inline += [name for name in values if name.startswith("on") or name == "style"]


def test_the_page_links_only_to_files_of_the_bundle_and_has_nothing_inline() -> None:
    links = _Links()
    links.feed(page(assets="/base/graphiql/").decode())
    assert len(links.urls) >= 3
    for url in links.urls:
        assert (DIST / url.removeprefix("/base/graphiql/")).is_file(), url
    assert links.inline == []


def test_the_page_escapes_what_it_is_given() -> None:
    text = page(title='<script>"', endpoint='/a"b').decode()
    assert "<title>&lt;script&gt;&quot; · GraphiQL</title>" in text
    assert 'data-endpoint="/a&quot;b"' in text


def test_the_policy_names_no_other_host_and_no_inline_script() -> None:
    rules = dict(rule.split(" ", 1) for rule in CONTENT_SECURITY_POLICY.split("; "))
    assert rules["default-src"] == "'none'"
    assert rules["script-src"] == "'self'"
    assert rules["connect-src"] == "'self'"
    assert "http" not in CONTENT_SECURITY_POLICY
    assert "*" not in CONTENT_SECURITY_POLICY


def test_hashed_files_may_be_kept_for_a_year_and_others_may_not(assets: TestClient) -> None:
    script = assets.get(f"/graphiql/{manifest()['entry']['script']}")
    assert script.headers["cache-control"] == "public, max-age=31536000, immutable"
    assert script.headers["content-type"].startswith("text/javascript")
    icon = assets.get("/graphiql/favicon.svg")
    assert icon.headers["cache-control"] == "no-cache"
    assert icon.headers["content-type"].startswith("image/svg+xml")


def test_a_file_is_the_same_compressed_and_plain(assets: TestClient) -> None:
    path = f"/graphiql/{manifest()['entry']['script']}"
    plain = assets.get(path, headers={"accept-encoding": "identity"})
    packed = assets.get(path, headers={"accept-encoding": "gzip"})
    assert "content-encoding" not in plain.headers
    assert packed.headers["content-encoding"] == "gzip"
    assert int(packed.headers["content-length"]) * 2 < int(plain.headers["content-length"])
    assert packed.content == plain.content == (DIST / manifest()["entry"]["script"]).read_bytes()


@pytest.mark.parametrize(
    "path",
    ["assets/none.js", "../__init__.py", "..%2f__init__.py", "assets/..%2f..%2fpackage.json"],
)
def test_nothing_outside_the_bundle_is_served(assets: TestClient, path: str) -> None:
    assert assets.get(f"/graphiql/{path}").status_code == 404


def test_every_package_in_the_bundle_is_credited() -> None:
    notices = (DIST / "THIRD-PARTY-NOTICES.txt").read_text(encoding="utf-8")
    for name in ("react", "graphiql", "monaco-editor", "graphql-ws", "prettier"):
        assert re.search(rf"^{name} \d+\.\d+\.\d+ \(", notices, re.MULTILINE), name
