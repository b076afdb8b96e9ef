"""A disk that fills up while cases are written, on a file system that is really full."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from building import tree_hash

from livprep.cohort import IngestRequest, plan_ingest, plan_windows, run_ingest, run_windows
from livprep.errors import LivError
from livprep.store import is_store, open_store, staging_entries
from livprep.windows import Window

COMMAND = [sys.executable, "-c", "from livcli.livprep_main import main; main()"]
MIB = 1 << 20


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Mounts a tmpfs of so many bytes."""
    mounted: list[Path] = []

    def mount(size: int) -> Path:
        folder = tmp_path / f"disk-{len(mounted)}"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
        if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("a file system of its own can be mounted by root alone")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path, left: int) -> None:
    """Take all of a disk but `left` bytes."""
    with (folder / "filler").open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(1, shutil.disk_usage(folder).free - left))


def filled_up(sources: Path, disk: Path, left: int) -> None:
    """The disk is full after the first case: it stays whole, nothing else appears, and with room all is well again."""
    store = disk / "store"
    receipts = run_ingest(plan_ingest(IngestRequest((sources,), store, workers=1)))
    first = next(receipts).case
    before = tree_hash(store / "cases" / first)
    fill(disk, left)
    with pytest.raises(
        LivError, match=r"became full; what is left to do needs about \d+ bytes, \d+ are free"
    ) as caught:
        list(receipts)
    assert caught.value.code == "DISK_FULL"
    assert staging_entries(store) == []
    assert tree_hash(store / "cases" / first) == before
    for case in open_store(store).values():
        case.read_hu()
        case.manifests()
    (disk / "filler").unlink()
    assert {receipt.status for receipt in run_ingest(plan_ingest(IngestRequest((sources,), store, workers=1)))} <= {
        "published",
        "unchanged",
    }
    assert len(open_store(store)) == 3


@pytest.mark.parametrize("left", [0, 200_000])
def test_a_disk_that_fills_up_publishes_nothing_half(
    phantom_lits: Path, small_disk: Callable[[int], Path], left: int
) -> None:
    filled_up(phantom_lits, small_disk(64 * MIB), left)


@pytest.mark.nightly
@pytest.mark.timeout(1800)
def test_ten_points_at_which_the_disk_is_full(phantom_lits: Path, small_disk: Callable[[int], Path]) -> None:
    for k in range(10):
        filled_up(phantom_lits, small_disk(64 * MIB), k * 25_000)


def test_a_full_disk_ends_a_window_with_what_was_there(
    phantom_lits: Path, small_disk: Callable[[int], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = small_disk(64 * MIB)
    list(run_ingest(plan_ingest(IngestRequest((phantom_lits,), disk / "store", workers=1))))
    store = open_store(disk / "store")
    before = tree_hash(store.path)
    receipts = run_windows(store, plan_windows(store, [Window(40, 220)]), workers=1)
    monkeypatch.setattr("livprep.cohort._require_free", lambda *facts: fill(disk, 20_000))
    with pytest.raises(OSError, match="No space left on device"):
        list(receipts)
    assert staging_entries(store.path) == []
    assert tree_hash(store.path) == before


def test_what_cannot_fit_is_refused_with_numbers_before_any_work(
    phantom_lits: Path, small_disk: Callable[[int], Path]
) -> None:
    disk = small_disk(MIB // 4)
    done = subprocess.run(
        [*COMMAND, "ingest", str(phantom_lits), "--store", str(disk / "store"), "--workers", "1"],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 74, done.stderr
    assert "DISK_FULL" in done.stderr
    assert "needs about" in done.stderr
    assert "are free" in done.stderr
    assert not is_store(disk / "store") or len(open_store(disk / "store")) == 0
