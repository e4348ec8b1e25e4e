"""Models behind one protocol: the embedded assistant, and any OpenAI-compatible server."""

from decimal import Decimal
from typing import Protocol

from services.language.embeddings import Embedder
from services.llm.base import Provider
from services.llm.embedded import EmbeddedProvider

__all__ = ["open_provider"]


class Secret(Protocol):
    """A string that does not show itself, such as pydantic's SecretStr."""

    def get_secret_value(self) -> str:
        """The string."""


def open_provider(
    *,
    base_url: str | None,
    api_key: Secret | str | None,
    model: str | None,
    embedder: Embedder,
    word_delay_s: float = 0.008,
    connect_timeout_s: float = 10.0,
    first_chunk_timeout_s: float = 120.0,
    chunk_timeout_s: float = 60.0,
    total_timeout_s: float = 900.0,
    max_attempts: int = 4,
    input_usd_per_million: Decimal | None = None,
    output_usd_per_million: Decimal | None = None,
) -> Provider:
    """The provider the configuration names: the embedded assistant if it names none.

    A base URL, a key, or both choose an OpenAI-compatible server; the key alone means OpenAI's own.
    Costs are known only where both prices are. Raises ValueError where `model` is missing.
    """
    key = api_key if api_key is None or isinstance(api_key, str) else api_key.get_secret_value()
    if not base_url and not key:
        return EmbeddedProvider(embedder, word_delay_s=word_delay_s)
    if not model:
        raise ValueError("NOOSPHERE_LLM_MODEL must name the model to use with this provider.")
    # The SDK takes a second to import, which a start without a provider need not pay.
    from services.llm.openai import OpenAIProvider, Prices, Retries, Timeouts

    prices = None
    if input_usd_per_million is not None and output_usd_per_million is not None:
        prices = Prices(input_usd_per_million, output_usd_per_million)
    return OpenAIProvider(
        base_url=base_url or None,
        api_key=key or None,
        model=model,
        timeouts=Timeouts(
            connect_timeout_s, first_chunk_timeout_s, chunk_timeout_s, total_timeout_s
        ),
        retries=Retries(attempts=max_attempts),
        prices=prices,
    )
