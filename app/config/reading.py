"""Reads the settings from the environment, and says in one line each what is wrong with them."""

import difflib
import os
from typing import Any

from pydantic import SecretStr, ValidationError

from app.config.settings import PREFIX, Settings
from app.errors import ConfigurationError


def unknown() -> list[str]:
    """Give a sentence for each variable that looks like ours, and means nothing here."""
    known = [name.upper() for name in Settings.model_fields]
    told = []
    for variable in sorted(os.environ):
        name = variable.upper().removeprefix(PREFIX)
        if variable.upper().startswith(PREFIX) and name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f": did you mean {PREFIX}{near[0]}?" if near else ""
            told.append(f"{variable} is not known{hint}")
    return told


def load(**overrides: Any) -> Settings:
    """Read the configuration. Raises ConfigurationError with one line naming each bad variable."""
    try:
        settings = Settings(**overrides)
    except ValidationError as error:
        raise ConfigurationError(_explain(error)) from error
    if settings.trusted_documents_only and not settings.trusted_documents:
        raise ConfigurationError(
            f"{PREFIX}TRUSTED_DOCUMENTS is empty: expected the path of a manifest, because "
            f"{PREFIX}TRUSTED_DOCUMENTS_ONLY is set"
        )
    has_provider = settings.llm_base_url or settings.llm_api_key.get_secret_value()
    if has_provider and not settings.llm_model:
        raise ConfigurationError(
            f"{PREFIX}LLM_MODEL is empty: expected the name of a model, "
            f"because {PREFIX}LLM_BASE_URL or {PREFIX}LLM_API_KEY is set"
        )
    return settings


def _explain(error: ValidationError) -> str:
    parts = []
    for item in error.errors(include_url=False):
        name = str(item["loc"][0]) if item["loc"] else ""
        field = Settings.model_fields.get(name)
        shown = "…" if field is not None and field.annotation is SecretStr else repr(item["input"])
        expected = item["msg"].removeprefix("Value error, ")
        if not expected.startswith("expected"):
            expected = f"expected: {expected[0].lower()}{expected[1:]}"
        parts.append(f"{PREFIX}{name.upper()}={shown[:80]} is not usable, {expected}")
    return "; ".join(parts).replace("\n", " ")
