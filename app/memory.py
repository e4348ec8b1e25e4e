"""What a process does about its memory once all that lives as long as it does exists."""

import ctypes
import gc

# More than a thousand connects leave alive: by default the collector runs every 700 objects, and
# looks at all that is young each time.
_YOUNG, _MIDDLE, _OLD = 200_000, 20, 100


def settle() -> None:
    """Let the garbage collector pass over what there is from now on, and give back the rest.

    It runs rarely from then on: what is made for requests is freed without it.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG, _MIDDLE, _OLD)
    trim()


def trim() -> None:
    """Give the system back what the C library holds of freed memory, where it can do so (glibc).

    Starting frees a tenth of what it takes (modules as read, regular expressions as parsed), most
    of it below memory that stays, where the library looks only when told. Takes milliseconds.
    """
    malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if malloc_trim is not None:
        malloc_trim(0)
