"""Models behind one protocol: the embedded assistant, and any OpenAI-compatible server."""

from services.language.embeddings import Embedder
from services.llm.base import Provider
from services.llm.embedded import EmbeddedProvider

__all__ = ["open_provider"]


def open_provider(
    *,
    base_url: str | None,
    api_key: str | None,
    model: str | None,
    embedder: Embedder,
    word_delay_s: float = 0.008,
) -> Provider:
    """The embedded assistant where neither `base_url` nor `api_key` is given."""
    if base_url is None and api_key is None:
        return EmbeddedProvider(embedder, word_delay_s=word_delay_s)
    raise ValueError(f"No provider for {base_url} and model {model}.")
