"""Running again redoes nothing, a change redoes what depends on it, and the same input gives the same bytes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from building import ircadb_case, lits_pair, mask_array, tree_hash

from livprep.cohort import IngestRequest, plan_ingest, plan_windows, remove_windows, run_ingest, run_windows
from livprep.division import SplitRequest, divide
from livprep.prepare import Preparation
from livprep.store import open_store
from livprep.windows import Window

Snapshot = dict[str, tuple[int, int, int]]


def state(store: Path) -> Snapshot:
    """Inode, time of change and size of every file but the journal's; what is written again differs in the first."""
    return {
        path.relative_to(store).as_posix(): (path.stat().st_ino, path.stat().st_mtime_ns, path.stat().st_size)
        for path in store.rglob("*")
        if path.is_file() and path.relative_to(store).parts[0] not in ("journal", ".staging")
    }


def ingest(sources: Path, store: Path, **options: object) -> dict[str, str]:
    request = IngestRequest((sources,), store, workers=1, **options)
    return {receipt.case: receipt.status for receipt in run_ingest(plan_ingest(request))}


def window(store: Path, *windows: Window) -> list[str]:
    opened = open_store(store)
    return [receipt.status for receipt in run_windows(opened, plan_windows(opened, windows), workers=1)]


def changed(before: Snapshot, store: Path) -> set[str]:
    after = state(store)
    return {name for name in {*before, *after} if before.get(name) != after.get(name)}


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    root = tmp_path / "in"
    ircadb_case(root, 2)
    lits_pair(root, 3)
    lits_pair(root, 28, seed=4)
    return root


@pytest.fixture
def store(sources: Path, tmp_path: Path) -> Path:
    """Three cases, two channels, a split."""
    path = tmp_path / "store"
    ingest(sources, path)
    window(path, Window(40, 220), Window(60, 140))
    divide(SplitRequest(path))
    return path


def test_running_everything_again_writes_nothing_but_the_journal(sources: Path, store: Path) -> None:
    before, hashes = state(store), tree_hash(store)
    assert set(ingest(sources, store).values()) == {"unchanged"}
    assert set(window(store, Window(40, 220), Window(60, 140))) == {"unchanged"}
    assert changed(before, store) == set()
    divide(SplitRequest(store))
    assert changed(before, store) == {"splits/default.json"}
    assert tree_hash(store) == hashes


def test_adding_a_case_touches_that_case_alone(sources: Path, store: Path) -> None:
    before, hashes = state(store), tree_hash(store)
    ircadb_case(sources, 5, {"liver": mask_array(1)})
    assert ingest(sources, store) == {
        "ircadb-02": "unchanged", "ircadb-05": "published", "lits-003": "unchanged", "lits-028": "unchanged",
    }  # fmt: skip
    assert {name.split("/")[1] for name in changed(before, store)} == {"ircadb-05"}
    after = tree_hash(store)
    assert {name: after[name] for name in hashes} == hashes


def test_adding_and_removing_a_channel_touch_that_channel_alone(store: Path) -> None:
    before = state(store)
    assert window(store, Window(40, 220), Window(0, 400)).count("published") == 3
    cases = [case.path.relative_to(store).as_posix() for case in open_store(store).values()]
    touched = changed(before, store)
    assert {name for name in touched if "/windows/wl0_ww400/" not in name} == {f"{case}/zarr.json" for case in cases}
    hashes = tree_hash(store)
    list(remove_windows(open_store(store), "wl0_ww400"))
    window(store, Window(0, 400))
    assert tree_hash(store) == hashes


def test_a_replaced_case_touches_itself_alone(sources: Path, store: Path) -> None:
    before, hashes = state(store), tree_hash(store)
    assert ingest(sources, store, pattern="lits-003", replace=True) == {"lits-003": "published"}
    assert {name.split("/")[1] for name in changed(before, store)} == {"lits-003"}
    assert tree_hash(store) == hashes  # with its channels


def test_another_spacing_and_back_gives_the_first_bytes(sources: Path, store: Path) -> None:
    hashes = tree_hash(store)
    ingest(sources, store, preparation=Preparation((4.0, 1.0, 1.0)), replace=True)
    other = tree_hash(store)
    assert {name for name in hashes if hashes[name] == other.get(name)} >= {"splits/default.json"}
    assert {case.geometry.spacing_mm for case in open_store(store).values()} == {(4.0, 1.0, 1.0)}
    ingest(sources, store, replace=True)
    assert tree_hash(store) == hashes


def test_an_empty_store_takes_another_preparation(sources: Path, tmp_path: Path) -> None:
    for path in (sources / "3Dircadb1.2" / "MASKS_DICOM" / "liver").iterdir():
        path.unlink()
    assert ingest(sources, tmp_path / "s", dataset="ircadb") == {"ircadb-02": "rejected"}
    assert ingest(sources, tmp_path / "s", dataset="lits", preparation=Preparation((4.0, 1.0, 1.0)))["lits-003"] == (
        "published"
    )


# --- elsewhere, on another day

RUN = """
import os, sys, time
os.umask(int(sys.argv[4], 8))
shift = 86400 * float(sys.argv[5])
for name in ("time", "monotonic"):
    setattr(time, name, lambda real=getattr(time, name): real() + shift)
for name in ("gmtime", "localtime"):
    setattr(time, name, lambda *seconds, real=getattr(time, name): real(*(seconds or [time.time()])))
from pathlib import Path
from livprep.cohort import IngestRequest, plan_ingest, plan_windows, run_ingest, run_windows
from livprep.division import SplitRequest, divide
from livprep.store import open_store
from livprep.prepare import Preparation
from livprep.windows import Window

def main():
    store, workers = Path(sys.argv[2]), int(sys.argv[3])
    scheduler = cluster = None
    if workers < 0:  # threads of one process
        from distributed import LocalCluster
        cluster = LocalCluster(n_workers=1, threads_per_worker=-workers, processes=False, protocol="tcp",
                               host="127.0.0.1", dashboard_address="127.0.0.1:0", worker_dashboard_address=None)
        scheduler, workers = cluster.scheduler_address, 1
    spacing = Preparation((3.0, 5.0, 5.0))
    request = IngestRequest((Path(sys.argv[1]),), store, workers=workers, scheduler=scheduler, preparation=spacing)
    receipts = list(run_ingest(plan_ingest(request)))
    assert all(receipt.status == "published" for receipt in receipts), receipts
    opened = open_store(store)
    windows = [Window(40, 220), Window(60, 140)]
    list(run_windows(opened, plan_windows(opened, windows), 1, scheduler))
    divide(SplitRequest(store, val=0.4))
    if cluster is not None:
        cluster.close()

if __name__ == "__main__":
    main()
"""

ELSEWHERE: dict[str, tuple[int, str, float, dict[str, str]]] = {
    "here": (1, "022", 0.0, {}),
    "two processes": (2, "077", 0.0, {"TZ": "Pacific/Kiritimati", "PYTHONHASHSEED": "1", "LC_ALL": "C"}),
    "two threads, next year": (-2, "002", 400.5, {"TZ": "UTC", "PYTHONHASHSEED": "77", "LANG": "tr_TR.UTF-8"}),
    "serial, years ago": (1, "027", -4000.0, {"PYTHONHASHSEED": "random", "OMP_NUM_THREADS": "2", "LC_ALL": "de_DE"}),
}


def run_at(place: str, sources: Path, home: Path) -> dict[str, str]:
    """Hashes of a store that was made in a process of its own, from a copy of the sources."""
    workers, mask, days, variables = ELSEWHERE[place]
    (home / "run.py").write_text(RUN)
    copy = shutil.copytree(sources, home / "in", copy_function=shutil.copyfile)  # other times and modes
    environment = {key: value for key, value in os.environ.items() if key not in ("TZ", "LANG", "LC_ALL")}
    arguments = [home / "run.py", copy, home / "store", workers, mask, days]
    subprocess.run(
        [sys.executable, *map(str, arguments)], env={**environment, **variables}, cwd=home, check=True, timeout=240
    )
    return tree_hash(home / "store")


@pytest.fixture(scope="module")
def here(phantom_lits: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return run_at("here", phantom_lits, tmp_path_factory.mktemp("here"))


@pytest.mark.parametrize(
    "place",
    ["two processes", "serial, years ago", pytest.param("two threads, next year", marks=pytest.mark.nightly)],
)
def test_the_same_input_gives_the_same_bytes_anywhere_at_any_time(
    place: str, here: dict[str, str], phantom_lits: Path, tmp_path: Path
) -> None:
    assert len(here) > 100
    assert {name.split("/")[0] for name in here} == {"cases", "splits", "zarr.json"}
    assert run_at(place, phantom_lits, tmp_path) == here


def test_no_place_is_in_a_store(store: Path, tmp_path: Path) -> None:
    text = b"".join(path.read_bytes() for name in ("cases", "splits") for path in (store / name).rglob("*.json"))
    assert str(tmp_path).encode() not in text
