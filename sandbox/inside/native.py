"""Functions of the C library, by the module below `ctypes`, which is much to load and to fork."""

import _ctypes


class Int(_ctypes._SimpleCData):  # type: ignore[type-arg]
    """What the functions return, and what small numbers are passed as."""

    _type_ = "i"


class Long(_ctypes._SimpleCData):  # type: ignore[type-arg]
    """What `syscall` takes: it reads each argument as wide as the machine's words."""

    _type_ = "l"


class Byte(_ctypes._SimpleCData):  # type: ignore[type-arg]
    _type_ = "b"


class Memory(_ctypes.Array):  # type: ignore[type-arg]
    """Room for what a function writes, more than enough for the structures asked for here."""

    _type_ = Byte
    _length_ = 1024


class Function(_ctypes.CFuncPtr):
    """One function, made of its address; afterwards `errno()` tells why it failed."""

    _flags_ = _ctypes.FUNCFLAG_CDECL | _ctypes.FUNCFLAG_USE_ERRNO
    _restype_ = Int


PROGRAM = _ctypes.dlopen(None, 0)  # type: ignore[arg-type]
errno_of_last = _ctypes.get_errno


def function(name: str) -> Function:
    return Function(_ctypes.dlsym(PROGRAM, name))


libc_prctl = function("prctl")
libc_syscall = function("syscall")
libc_wait4 = function("wait4")
libc_inotify_init1 = function("inotify_init1")
libc_inotify_add_watch = function("inotify_add_watch")
libc_inotify_rm_watch = function("inotify_rm_watch")
