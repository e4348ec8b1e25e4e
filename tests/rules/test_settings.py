"""Every setting is documented, as it is."""

import re
from enum import Enum
from pathlib import Path

import pytest
from pydantic import SecretStr
from pydantic.fields import FieldInfo

from app.config import PREFIX, Settings

ROOT = Path(__file__).parents[2]
ROW = re.compile(r"^\| `(NOOSPHERE_[A-Z_]+)` \| (.*?) \| (.+) \|$", re.MULTILINE)


def documented() -> dict[str, tuple[str, str]]:
    """Give the rows of the README's table: variable → default, description."""
    rows = ROW.findall((ROOT / "README.md").read_text())
    assert len({name for name, _, _ in rows}) == len(rows), "a variable is documented twice"
    return {name: (default.strip(), text) for name, default, text in rows}


def shown(field: FieldInfo) -> str:
    value = field.default
    if isinstance(value, SecretStr):
        value = value.get_secret_value()
    if value is None or value in ("", ()):
        return ""
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"`{value.value if isinstance(value, Enum) else value}`"


def test_the_table_names_every_setting_and_no_other_in_their_order() -> None:
    names = [f"{PREFIX}{name.upper()}" for name in Settings.model_fields]
    assert list(documented()) == names


@pytest.mark.parametrize("name", Settings.model_fields)
def test_a_setting_is_documented_with_its_default_and_meaning(name: str) -> None:
    default, text = documented()[f"{PREFIX}{name.upper()}"]
    field = Settings.model_fields[name]
    assert default == shown(field)
    assert text == field.description
