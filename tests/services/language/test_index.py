import numpy as np
import pytest

from services.language.embeddings import to_bytes
from services.language.index import ExactIndex, VectorIndex


def unit(rng, n, dimensions=512):
    vectors = rng.standard_normal((n, dimensions)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_search_agrees_with_brute_force_after_many_changes():
    rng = np.random.default_rng(7)
    index: VectorIndex = ExactIndex()
    truth = {}
    for step, vector in enumerate(unit(rng, 600)):
        id = f"m{rng.integers(0, 200)}"
        if step % 3 == 2:
            index.remove(id)
            truth.pop(id, None)
        else:
            index.upsert(id, vector)
            truth[id] = vector
    assert len(index) == len(truth)
    for query in unit(rng, 20):
        expected = sorted(((id, float(v @ query)) for id, v in truth.items()), key=lambda p: -p[1])
        found = index.search(query, 10)
        assert [id for id, _ in found] == [id for id, _ in expected[:10]]
        assert found[0][1] == pytest.approx(expected[0][1], abs=1e-5)


def test_search_among_a_few_ids_only():
    rng = np.random.default_rng(1)
    vectors = unit(rng, 50)
    index = ExactIndex()
    for n, vector in enumerate(vectors):
        index.upsert(f"m{n}", vector)
    found = index.search(vectors[3], 5, among={"m3", "m9", "unknown"})
    assert [id for id, _ in found] == ["m3", "m9"]
    assert index.search(vectors[3], 5, among=set()) == []


def test_ties_are_broken_by_id_and_k_is_a_bound():
    index = ExactIndex(2)
    for id in ("c", "a", "b", "d"):
        index.upsert(id, np.array([1, 0], dtype=np.float32))
    query = np.array([1, 0], dtype=np.float32)
    assert [id for id, _ in index.search(query, 2)] == ["a", "b"]
    assert len(index.search(query, 99)) == 4
    assert index.search(query, 0) == []


def test_an_empty_index_and_unknown_ids():
    index = ExactIndex(2)
    index.remove("nobody")
    assert index.search(np.array([1, 0], dtype=np.float32), 3) == []
    index.upsert("a", np.array([1, 0], dtype=np.float32))
    index.remove("a")
    index.remove("a")
    assert "a" not in index
    assert index.search(np.array([1, 0], dtype=np.float32), 3) == []


def test_a_wrong_shape_is_refused():
    with pytest.raises(ValueError, match="Expected 512 dimensions"):
        ExactIndex().upsert("a", np.zeros(3, dtype=np.float32))


def test_a_vector_is_read_from_the_bytes_it_is_stored_as():
    (vector,) = unit(np.random.default_rng(3), 1)
    index = ExactIndex()
    assert index.upsert_bytes("a", to_bytes(vector))
    assert index.search(vector, 1) == [("a", pytest.approx(1.0, abs=1e-5))]
    for data in (b"", to_bytes(vector)[:-1], to_bytes(vector)[:-4], to_bytes(vector) * 2):
        assert not index.upsert_bytes("b", data)
    assert len(index) == 1
