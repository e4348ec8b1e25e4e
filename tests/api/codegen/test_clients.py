"""Clients generated from the committed schema compile strictly, and one of each speaks with us."""

import json
import shutil
import sys
from pathlib import Path

from tests.api.codegen.conftest import HERE, SCHEMA, run
from tests.api.people import sign_up
from tests.api.serving import served

CONFIG = """
[tool.ariadne-codegen]
schema_path = "{schema}"
queries_path = "{documents}"
target_package_name = "noosphere_client"
include_comments = "none"

[[tool.mypy.overrides]]
# Comes with the generator, as it is.
module = "noosphere_client.async_base_client"
ignore_errors = true
"""
SAID = {"title": "Trees", "memory": "I like trees", "errors": []}


async def test_a_typescript_client_compiles_and_speaks_with_the_server(
    node_modules: Path, documents: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "client"
    folder.mkdir()
    (folder / "node_modules").symlink_to(node_modules)
    (folder / "package.json").write_text('{"type": "module"}')
    for name in ("generate.mjs", "client.ts"):
        shutil.copy(HERE / name, folder)
    await run("node", "generate.mjs", str(SCHEMA), str(documents), "generated.ts", cwd=folder)
    options = ["--strict", "--target", "es2022", "--module", "nodenext", "--skipLibCheck"]
    await run("node", "node_modules/typescript/bin/tsc", *options, "client.ts", cwd=folder)
    async with served(tmp_path) as server:
        ann = await sign_up(server.deps, "ann")
        said = json.loads(await run("node", "client.js", server.url, ann.token, cwd=folder))
    assert said.pop("roles") == ["USER", "ASSISTANT"]
    assert said == SAID


async def test_a_python_client_type_checks_and_speaks_with_the_server(
    ariadne: Path, documents: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "client"
    folder.mkdir()
    config = CONFIG.format(schema=SCHEMA, documents=documents)
    (folder / "pyproject.toml").write_text(config)
    await run(str(ariadne.with_name("ariadne-codegen")), cwd=folder)
    shutil.copy(HERE / "client.py.txt", folder / "client.py")
    mypy = [sys.executable, "-m", "mypy", "--strict", "--python-executable", str(ariadne)]
    await run(*mypy, "--cache-dir", str(tmp_path / "mypy"), "client.py", cwd=folder)
    async with served(tmp_path) as server:
        ann = await sign_up(server.deps, "ann")
        said = json.loads(await run(str(ariadne), "client.py", server.url, ann.token, cwd=folder))
    assert said.pop("roles") == ["USER", "ASSISTANT"]
    assert said.pop("first_event") == "ConversationReset"
    assert said == SAID
