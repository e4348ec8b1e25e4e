"""Nearest vectors, exactly, in the memory of the process.

20,000 vectors of 512 dimensions are searched in about 2 ms, so an approximate structure would only
add errors. Larger stores replace this class behind the same interface.
"""

from collections.abc import Collection
from typing import Protocol

import numpy as np
import numpy.typing as npt

from services.language.blas import limit_blas_threads
from services.language.embeddings import DIMENSIONS

Vector = npt.NDArray[np.float32]


class VectorIndex(Protocol):
    """Ids and their vectors; vectors are L2-normalised, scores are cosines in -1…1."""

    def upsert(self, id: str, vector: Vector) -> None:
        """Add an id, or replace its vector."""

    def remove(self, id: str) -> None:
        """Forget an id; unknown ids are ignored."""

    def search(
        self, vector: Vector, k: int, among: Collection[str] | None = None
    ) -> list[tuple[str, float]]:
        """The `k` nearest ids, best first, ties by id; only ids in `among` where it is given."""


class ExactIndex:
    """Every vector compared with every query. Use from one thread, or behind a lock."""

    def __init__(self, dimensions: int = DIMENSIONS) -> None:
        limit_blas_threads(1)
        self._rows: dict[str, int] = {}
        self._ids: list[str] = []
        self._matrix = np.zeros((64, dimensions), dtype=np.float32)

    def __len__(self) -> int:
        return len(self._ids)

    def __contains__(self, id: object) -> bool:
        return id in self._rows

    def upsert(self, id: str, vector: Vector) -> None:
        """Add an id, or replace its vector. Raises ValueError on a wrong shape."""
        if vector.shape != (self._matrix.shape[1],):
            raise ValueError(f"Expected {self._matrix.shape[1]} dimensions, got {vector.shape}.")
        row = self._rows.get(id)
        if row is None:
            row = len(self._ids)
            if row == len(self._matrix):
                self._matrix = np.concatenate([self._matrix, np.zeros_like(self._matrix)])
            self._ids.append(id)
            self._rows[id] = row
        self._matrix[row] = vector

    def upsert_bytes(self, id: str, data: bytes) -> bool:
        """Add an id, or replace its vector, by what `to_bytes` gave; False for another size."""
        if len(data) != 4 * self._matrix.shape[1]:
            return False
        self.upsert(id, np.frombuffer(data, dtype="<f4"))
        return True

    def remove(self, id: str) -> None:
        """Forget an id; the last row takes its place, so this costs the same at any size."""
        row = self._rows.pop(id, None)
        if row is None:
            return
        last = self._ids.pop()
        if last != id:
            self._ids[row] = last
            self._rows[last] = row
            self._matrix[row] = self._matrix[len(self._ids)]

    def search(
        self, vector: Vector, k: int, among: Collection[str] | None = None
    ) -> list[tuple[str, float]]:
        """The `k` nearest ids, best first, ties by id."""
        if among is None:
            rows = np.arange(len(self._ids))
            scores = self._matrix[: len(self._ids)] @ vector
        else:
            known = {self._rows[id] for id in among if id in self._rows}
            rows = np.fromiter(sorted(known), dtype=np.int64, count=len(known))
            scores = self._matrix[rows] @ vector
        if k <= 0 or not len(rows):
            return []
        if k < len(rows):
            # Everything that ties with the k-th stays in, so that ties are broken by id alone.
            bound = np.partition(scores, len(scores) - k)[len(scores) - k]
            kept = np.flatnonzero(scores >= bound)
            rows, scores = rows[kept], scores[kept]
        found = [(self._ids[row], float(score)) for row, score in zip(rows, scores, strict=True)]
        found.sort(key=lambda pair: (-pair[1], pair[0]))
        return found[:k]
