"""The committed filters are what the policy compiles to."""

import json
import platform
import struct

import pytest

from sandbox import seccomp


@pytest.mark.parametrize("machine", seccomp.MACHINES)
def test_committed_filters_are_current(machine: str) -> None:
    pyseccomp = pytest.importorskip("pyseccomp", reason="pyseccomp is for development only")
    assert pyseccomp is not None
    assert seccomp.compile_program(machine) == seccomp.program_path(machine).read_bytes()


@pytest.mark.parametrize(("machine", "audit"), [("x86_64", 0xC000003E), ("aarch64", 0xC00000B7)])
def test_a_filter_looks_at_its_own_machine_first(machine: str, audit: int) -> None:
    program = seccomp.program_path(machine).read_bytes()
    assert len(program) % 8 == 0
    load, compare = struct.unpack("=HBBI", program[:8]), struct.unpack("=HBBI", program[8:16])
    assert load == (0x20, 0, 0, 4)
    assert (compare[0], compare[3]) == (0x15, audit)


def test_dangerous_calls_are_not_allowed() -> None:
    allowed = {name for rule in seccomp.rules("x86_64") if rule["errno"] is None
               for name in rule["names"] if not rule["conditions"]}  # fmt: skip
    dangerous = {
        "mount", "umount2", "unshare", "setns", "ptrace", "process_vm_writev", "keyctl", "bpf",
        "io_uring_setup", "userfaultfd", "perf_event_open", "kexec_load", "init_module", "chroot",
        "pivot_root", "open_by_handle_at", "pidfd_getfd", "clone", "clone3", "socket", "ioctl",
        "personality", "memfd_secret", "fsopen", "move_mount", "reboot", "swapon", "quotactl",
    }  # fmt: skip
    assert allowed & dangerous == set()
    assert 0x5412 not in seccomp.IOCTLS


def test_both_compilers_know_every_rule() -> None:
    profile = seccomp.oci_profile()
    assert profile["defaultAction"] == "SCMP_ACT_ERRNO"
    assert len(profile["syscalls"]) == len(list(seccomp.rules("x86_64")))
    assert json.loads(json.dumps(profile)) == profile


@pytest.mark.skipif(platform.machine() not in seccomp.MACHINES, reason="no policy for it")
def test_this_machine_has_a_filter() -> None:
    assert seccomp.load_program()
