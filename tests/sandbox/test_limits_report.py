"""What bubblewrap says that it enforces, where less can be held."""

from pathlib import Path

import pytest

from sandbox import cgroups
from sandbox.base import Enforcement
from sandbox.bubblewrap_report import changeable, report
from sandbox.inside import barriers

FULL, PARTLY, NONE = Enforcement.ENFORCED, Enforcement.PER_PROCESS, Enforcement.UNAVAILABLE


def test_a_report_claims_nothing_that_is_not_there() -> None:
    def items(hierarchies: cgroups.Hierarchies | None, *, root: bool) -> dict[str, Enforcement]:
        return dict(
            report(
                "box", program=None, hierarchies=hierarchies, has_uids=root, no_images="Not tried."
            ).items
        )

    rootless = items(None, root=False)
    assert (rootless["memory"], rootless["cpu"], rootless["pause"]) == (PARTLY, NONE, NONE)
    assert (rootless["inodes"], rootless["uid"], rootless["disk_image"]) == (NONE, NONE, NONE)
    folders = {"memory": Path("memory"), "pids": Path("pids")}
    assert items(cgroups.Hierarchies(1, folders), root=True)["memory"] is FULL
    swapping = items(cgroups.Hierarchies(1, folders, bounds_swap=False), root=True)
    assert (swapping["memory"], swapping["pids"], swapping["cpu"]) == (NONE, FULL, NONE)


def test_a_kernel_that_spares_nobody_for_sure_is_said_to(monkeypatch: pytest.MonkeyPatch) -> None:
    def notes(version: int) -> str:
        monkeypatch.setattr(barriers, "landlock", lambda *asked: version)
        groups = cgroups.Hierarchies(1, {"memory": Path("memory")})
        return " ".join(
            report("box", program=None, hierarchies=groups, has_uids=True, no_images=None).notes
        )

    assert "Landlock" in notes(-1)
    assert "Landlock" in notes(1)
    assert "Landlock" not in notes(2)
    assert "TCP sockets" in notes(2)


def test_only_what_a_group_or_a_mount_holds_can_change() -> None:
    assert changeable(None, has_own_files=False) == {"output_bytes"}
    assert "disk_bytes" in changeable(None, has_own_files=True)
