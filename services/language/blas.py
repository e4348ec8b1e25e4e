"""One thread for the linear algebra of this process.

The matrices of a sentence are so small that several BLAS threads only wait for each other: with
as many threads as cores on a busy machine a sentence was measured at 187 ms instead of 1 ms. The
usual environment variables come too late once numpy is imported, so the library itself is told.
"""

import contextlib
import ctypes
import functools
from collections.abc import Iterator
from pathlib import Path

import numpy as np

_SETTERS = (
    "scipy_openblas_set_num_threads64_",
    "scipy_openblas_set_num_threads",
    "openblas_set_num_threads64_",
    "openblas_set_num_threads",
    "MKL_Set_Num_Threads",
    "bli_thread_set_num_threads",
)


def _libraries() -> Iterator[str]:
    """Paths of BLAS libraries in this process: mapped ones, and those bundled with numpy."""
    seen: set[str] = set()
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/maps").read_text(encoding="utf-8").splitlines():
            path = line.partition("/")[2]
            name = path.rpartition("/")[2].lower()
            if any(mark in name for mark in ("blas", "mkl_rt", "blis")):
                seen.add("/" + path)
    package = Path(np.__file__).parent
    for folder in (package.parent / "numpy.libs", package / ".dylibs"):
        seen.update(str(path) for path in folder.glob("*blas*"))
    yield from sorted(seen)


@functools.cache
def limit_blas_threads(threads: int = 1) -> bool:
    """Bound the BLAS threads of the whole process; False where no known library is found.

    The setting is process-wide and stays: the other user of numpy here, the vector index, is
    bound by memory and gains nothing from threads either.
    """
    is_limited = False
    for path in _libraries():
        with contextlib.suppress(OSError):
            library = ctypes.CDLL(path)
            for name in _SETTERS:
                setter = getattr(library, name, None)
                if setter is not None:
                    setter(ctypes.c_int(threads))
                    is_limited = True
    return is_limited
