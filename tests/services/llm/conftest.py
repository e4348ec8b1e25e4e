"""The embedded assistant, ready to talk."""

import pytest

from services.language.embeddings import Embedder
from services.llm.embedded import EmbeddedProvider
from tests.services.llm.talk import Talk


@pytest.fixture
async def talk():
    embedder = Embedder()
    yield Talk(EmbeddedProvider(embedder, word_delay_s=0))
    await embedder.aclose()
