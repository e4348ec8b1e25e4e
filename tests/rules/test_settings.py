"""Every setting is documented, as it is."""

import dataclasses
import os
import re
from enum import Enum
from pathlib import Path

import pytest
from pydantic import SecretStr
from pydantic.fields import FieldInfo

from app.config import PREFIX, Settings, Traces, load, traces
from app.errors import ConfigurationError
from app.runtime import _link_secret
from services.options import Options

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


def test_services_are_told_what_is_configured_and_by_default_the_same() -> None:
    told = Settings().options()
    # What the configuration does not name is as services have it.
    assert dataclasses.asdict(told) == dataclasses.asdict(
        Options(sandbox_template_image=told.sandbox_template_image)
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("sandbox_pool", "python"),
        ("sandbox_pool", "python=0"),
        ("sandbox_pool", "python=2,=1"),
        ("sandbox_pool", "python=many"),
        ("sandbox_pool", "python=101"),
        ("clamav_url", "clamav:3310"),
        ("clamav_url", "tcp://clamav"),
        ("clamav_url", "http://clamav:3310/"),
        ("sandbox_runtime", "runsc; reboot"),
        ("sandbox_disk", "tape"),
        ("sandbox_driver", "chroot"),
        ("kubernetes_seccomp_profile", "/etc/passwd"),
    ],
)
def test_a_bad_value_is_refused_by_its_name(name: str, value: str) -> None:
    with pytest.raises(ConfigurationError, match=f"{PREFIX}{name.upper()}"):
        load(**{name: value})


def test_a_pool_is_read_by_template() -> None:
    assert load(sandbox_pool=" python=2, node = 1 ,").options().sandbox_pool == (
        ("python", 2),
        ("node", 1),
    )


@pytest.mark.parametrize("url", ["tcp://clamav:3310", "unix:///run/clamav/clamd.ctl", ""])
def test_clamav_is_asked_over_either_socket(url: str) -> None:
    assert load(clamav_url=url).options().clamav_url == url


def test_links_are_signed_with_what_is_configured_else_with_what_was_made_once(
    tmp_path: Path,
) -> None:
    assert _link_secret(Settings(secret_key=SecretStr("known"), data_dir=tmp_path)) == b"known"
    assert list(tmp_path.iterdir()) == []

    made = _link_secret(Settings(data_dir=tmp_path))
    assert _link_secret(Settings(data_dir=tmp_path)) == made
    assert len(made) == 64

    place = tmp_path / "secret.key"
    assert [entry.name for entry in tmp_path.iterdir()] == [place.name]
    assert place.stat().st_mode & 0o777 == 0o600


def test_a_damaged_secret_is_refused(tmp_path: Path) -> None:
    (tmp_path / "secret.key").write_bytes(b"short")

    with pytest.raises(ConfigurationError, match="is damaged"):
        _link_secret(Settings(data_dir=tmp_path))


@pytest.fixture
def otel(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The environment without OpenTelemetry's variables."""
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)
    return monkeypatch


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, None),
        ({"EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, Traces("http://c:4318", 2048)),
        ({"EXPORTER_OTLP_TRACES_ENDPOINT": "https://c/x"}, Traces("https://c/x", 2048)),
        ({"TRACES_EXPORTER": "otlp"}, Traces("http://localhost:4318", 2048)),
        (
            {"TRACES_EXPORTER": "otlp", "BSP_MAX_QUEUE_SIZE": "9"},
            Traces("http://localhost:4318", 9),
        ),
        ({"EXPORTER_OTLP_ENDPOINT": "http://c:4318", "TRACES_EXPORTER": "none"}, None),
        ({"EXPORTER_OTLP_ENDPOINT": "http://c:4318", "SDK_DISABLED": "true"}, None),
        ({"EXPORTER_OTLP_ENDPOINT": " "}, None),
    ],
)
def test_opentelemetrys_own_variables_ask_for_traces(
    given: dict[str, str], expected: Traces | None, otel: pytest.MonkeyPatch
) -> None:
    for name, value in given.items():
        otel.setenv(f"OTEL_{name}", value)
    assert traces() == expected


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("TRACES_EXPORTER", "zipkin", "otlp"),
        ("EXPORTER_OTLP_ENDPOINT", "c:4317", "http://host:4318"),
        ("EXPORTER_OTLP_PROTOCOL", "grpc", "http/protobuf"),
        ("BSP_MAX_QUEUE_SIZE", "many", "number"),
    ],
)
def test_what_cannot_be_done_about_traces_is_said(
    name: str, value: str, expected: str, otel: pytest.MonkeyPatch
) -> None:
    otel.setenv("OTEL_TRACES_EXPORTER", "otlp")
    otel.setenv(f"OTEL_{name}", value)
    with pytest.raises(ConfigurationError, match=f"OTEL_{name}.*{expected}"):
        traces()
