"""Files are short enough to be read at a sitting."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDERS = (
    *("app", "schema", "resolvers", "services", "sandbox", "models", "migrations"),
    *("tests", "benchmarks"),
)
MOST = 400
"""Lines. What is longer becomes a package of the same name, of modules named by their content."""


def lengths() -> dict[str, int]:
    """Give the lines of every file of code but migrations, which are never touched again."""
    files = (path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
    return {
        path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8").count("\n")
        for path in files
        if "node_modules" not in path.parts and path.parent.name != "versions"
    }


def test_no_file_is_longer_than_it_may_be() -> None:
    known = lengths()
    assert len(known) > 500
    assert {path: found for path, found in known.items() if found > MOST} == {}
