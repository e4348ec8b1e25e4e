"""Failures of an OpenAI-compatible server as `ProviderError`s: fit for the user, without keys."""

import email.utils
import re
import time
from collections.abc import Mapping
from typing import Any

import openai

from services.llm.base import ProviderError

_MAX_MESSAGE_CHARS = 300


def _body(error: openai.APIStatusError) -> str:
    body = error.body
    if isinstance(body, Mapping) and isinstance(body.get("message"), str):
        return str(body["message"])
    return error.message


def _is_too_long(text: str) -> bool:
    return any(
        mark in text
        for mark in ("context_length", "context length", "maximum context", "too many tokens")
    )


def _retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Seconds a server asks to wait, by any of the three headers in use."""
    try:
        if "retry-after-ms" in headers:
            return max(0.0, float(headers["retry-after-ms"]) / 1000)
        value = headers.get("retry-after")
        if value is None:
            return None
        if re.fullmatch(r"\s*\d+(?:\.\d+)?\s*", value):
            return float(value)
        moment = email.utils.parsedate_to_datetime(value)
    except (ValueError, TypeError):
        return None
    return max(0.0, moment.timestamp() - time.time())


def timed_out(what: str) -> ProviderError:
    """The model `what`: "stopped answering"."""
    return ProviderError("TIMED_OUT", f"The model {what}.", is_retryable=True)


def bad_response() -> ProviderError:
    """The server sent what the protocol does not allow."""
    return ProviderError(
        "BAD_RESPONSE", "The model's server sent something unreadable.", is_retryable=True
    )


def of_connection() -> ProviderError:
    """There is no connection."""
    return ProviderError("UNAVAILABLE", "The model's server cannot be reached.", is_retryable=True)


def of_event(error: Any, api_key: str | None) -> ProviderError:
    """An error the server reports inside the stream, as the JSON it is."""
    shape = error if isinstance(error, Mapping) else {"message": error}
    message = shape.get("message")
    if not isinstance(message, str) or not message:
        message = "an error inside its answer"
    code = f"{shape.get('code') or ''} {shape.get('type') or ''} {message}".lower()
    if "rate" in code and "limit" in code:
        return ProviderError("RATE_LIMITED", "The model is rate limited.", is_retryable=True)
    if _is_too_long(code):
        return _too_long()
    return ProviderError(
        "UNAVAILABLE", f"The model failed: {_safe(message, api_key)}", is_retryable=True
    )


def of_status(error: openai.APIStatusError, model: str, api_key: str | None) -> ProviderError:
    """A refusal by status code."""
    status = error.status_code
    text = f"{error.code or ''} {error.message}".lower()
    if status == 429:
        if "insufficient_quota" in text or "billing" in text:
            return ProviderError(
                "REFUSED", "The model's account has no quota left.", is_retryable=False
            )
        wait_s = _retry_after_s(error.response.headers)
        return ProviderError(
            "RATE_LIMITED",
            "The model is asked too often; try again later.",
            is_retryable=True,
            retry_after_s=wait_s,
        )
    if status == 413 or (status in {400, 422} and _is_too_long(text)):
        return _too_long()
    if status in {401, 403}:
        return ProviderError(
            "REFUSED",
            "The model's server refused the key; check NOOSPHERE_LLM_API_KEY.",
            is_retryable=False,
        )
    if status == 404:
        return ProviderError(
            "REFUSED",
            f"The server knows no model {model!r} at this address; check"
            " NOOSPHERE_LLM_MODEL and NOOSPHERE_LLM_BASE_URL.",
            is_retryable=False,
        )
    if status >= 500 or status in {408, 409, 425}:
        return ProviderError(
            "UNAVAILABLE",
            f"The model's server failed with status {status}.",
            is_retryable=True,
            retry_after_s=_retry_after_s(error.response.headers),
        )
    return ProviderError(
        "REFUSED",
        f"The model's server refused the request ({status}): {_safe(_body(error), api_key)}",
        is_retryable=False,
    )


def _too_long() -> ProviderError:
    return ProviderError(
        "TOO_LONG", "The conversation is too long for the model.", is_retryable=False
    )


def _safe(message: str, api_key: str | None) -> str:
    """A server's message without anything that may be a key, and short."""
    if api_key:
        message = message.replace(api_key, "***")
    message = re.sub(r"\b(?:sk|key|Bearer)[-_ ][\w*.-]{6,}", "***", message)
    return " ".join(message.split())[:_MAX_MESSAGE_CHARS]
