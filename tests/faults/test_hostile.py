"""Hostile archives, bombs and source folders: refused with a code, without a hang, and nothing is written elsewhere."""

from __future__ import annotations

import json
import os
import shutil
import socket
import stat
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import bombs
import numpy as np
import pytest
from building import ircadb_case, lits_pair, nifti_bytes, plain_slice, scan, write_series
from conftest import Outcome

from livprep.cases import FileRef
from livprep.catalog import load_catalog
from livprep.errors import SourceError
from livprep.formats import archive, bounded
from livprep.formats.archive import close_archives, read_bytes, walk
from livprep.sources import discover, read_case

GROWTH_MB = 1000
"""reliability.md: less than 1 GB."""


pytestmark = pytest.mark.timeout(120)  # a hang ends the test; the product has no alarm of its own


@pytest.fixture(autouse=True)
def closed_archives() -> Iterator[None]:
    yield
    close_archives()


def measured(scratch: Path, paths: list[Path]) -> list[dict]:
    """Inspect paths in a process of its own."""
    here = Path(__file__)
    path = os.pathsep.join([str(here.parents[1]), str(here.parents[2]), os.environ.get("PYTHONPATH", "")])
    outcome = subprocess.run(
        [sys.executable, str(here.with_name("bombs.py")), str(scratch), *map(str, paths)],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert outcome.returncode == 0, outcome.stderr[-3000:]
    return json.loads(outcome.stdout)


def test_bombs_are_refused_in_bounded_memory(tmp_path: Path) -> None:
    paths = []
    for k, (name, build, _) in enumerate(bombs.BOMBS.values()):
        (tmp_path / str(k)).mkdir()
        paths.append(tmp_path / str(k) / name)
        paths[-1].write_bytes(build())
    assert sum(path.stat().st_size for path in paths) < 40 << 20
    bombs.write_thin_slices(tmp_path / "thin")
    found = measured(tmp_path / "small", [*paths, tmp_path / "thin"])
    expected = {name: codes for name, (_, _, codes) in bombs.BOMBS.items()} | {"thin slices": {"SERIES_LIMIT"}}
    told = {name: record["codes"] for name, record in zip(expected, found, strict=True)}
    assert not {name: told[name] for name, codes in expected.items() if not told[name] or not set(told[name]) <= codes}
    assert max(record["grown_mb"] for record in found) < GROWTH_MB, dict(zip(expected, found, strict=True))


def test_files_as_large_as_the_longest_scan_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """The limits are about what expands, not about what is large: LiTS's longest case has 987 slices."""
    hu_bytes = 2 * 987 * 512 * 512
    assert not bounded.is_amplified(hu_bytes, 1)
    assert not bounded.is_amplified(hu_bytes + hu_bytes // 2, 1)  # 8-bit labels, read as HU
    assert hu_bytes < archive._RATIO_FLOOR_BYTES
    floats = 8 * 987 * 512 * 512
    assert not bounded.is_amplified(floats + hu_bytes, floats // 15)
    assert bounded.is_amplified(floats, floats // 1000)


def test_a_voxel_of_a_meter_is_not_resampled(livprep: Callable[..., Outcome], tmp_path: Path) -> None:
    lits_pair(tmp_path / "in", 3)
    for name, values in (("volume", scan().image.hu), ("segmentation", scan().label_map.labels)):
        (tmp_path / "in" / f"{name}-3.nii").write_bytes(nifti_bytes(values, np.diag([1000.0, 1000.0, 1000.0, 1.0])))
    outcome = livprep(
        "ingest", tmp_path / "in", "--store", tmp_path / "store", "--spacing", "1,1,1", "--workers", 1, "--json"
    )
    (record,) = map(json.loads, outcome.out.splitlines())
    assert (outcome.code, record["code"]) == (3, "GEOMETRY")
    assert "check the source's spacing" in record["detail"]


def test_a_lying_size_has_no_say_in_what_a_run_needs(livprep: Callable[..., Outcome], tmp_path: Path) -> None:
    """A zip that claims terabytes must not keep the other cases from being ingested for want of disk."""
    lits_pair(tmp_path / "in", 3)
    (tmp_path / "in" / "lie.zip").write_bytes(bombs.raw_entry("test-volume-4.nii", bytes(1000), 2**32 - 2, 0))
    (tmp_path / "in" / "test-volume-5.nii.gz").write_bytes(b"\x1f\x8b" + b"\xff" * 60)
    outcome = livprep("ingest", tmp_path / "in", "--store", tmp_path / "store", "--workers", 1, "--json")
    assert outcome.code == 3
    codes = {record["case"]: record["code"] for record in map(json.loads, outcome.out.splitlines())}
    assert codes == {"lits-003": "", "litstest-004": "ARCHIVE_LIMIT", "litstest-005": "GZIP_CORRUPT"}


# --- names and nesting ------------------------------------------------------------------------------------------

NAMES = ["../../evil", "/etc/evil", "..\\evil", "a/../../../evil", "C:\\evil", "~/evil", "-rf", " ", "a b", "x\ny",
         "\x1b[2J", "ü\u202egnp.exe", "日本", "con", "n" * 250, "d/" * 200 + "x", "volume-3.nii/../../evil", ".staging",
         "%s%n", "$(id)", "'; rm -rf /", "evil\u0000.nii"]  # fmt: skip


def snapshot(root: Path) -> dict[str, tuple[int, int, int]]:
    """Every name below a folder with its kind, size and time."""
    found = {}
    for path in [root, *root.rglob("*")]:
        status = path.lstat()
        found[os.fsencode(path).decode("latin-1")] = (status.st_mode, status.st_size, status.st_mtime_ns)
    return found


def hostile_zip(path: Path) -> None:
    """Names that lead elsewhere, links, devices and duplicates, around a whole case."""
    hu, labels = nifti_bytes(scan().image.hu), nifti_bytes(scan().label_map.labels)
    with zipfile.ZipFile(path, "w") as target:
        for name in NAMES:
            target.writestr(zipfile.ZipInfo(name), b"x")
        for name, kind, data in (
            ("link", stat.S_IFLNK, b"/etc/passwd"),
            ("up", stat.S_IFLNK, b".."),
            ("fifo", stat.S_IFIFO, b""),
            ("device", stat.S_IFCHR, b""),
        ):
            info = zipfile.ZipInfo(name)
            info.external_attr = (kind | 0o777) << 16
            target.writestr(info, data)
        target.writestr("a/volume-3.nii", hu)
        target.writestr("a/segmentation-3.nii", labels)


def test_names_in_zips_write_nothing_outside(livprep: Callable[..., Outcome], tmp_path: Path) -> None:
    sources, store = tmp_path / "home" / "in", tmp_path / "home" / "store"
    sources.mkdir(parents=True)
    hostile_zip(sources / "-rf.zip")
    hostile_zip(sources / "plain.zip")
    before = snapshot(tmp_path)
    assert livprep("inspect", sources, "--json").code in (0, 3)
    assert snapshot(tmp_path) == before
    outcome = livprep("ingest", sources, "--store", store, "--workers", 1, "--json")
    assert outcome.code == 0, outcome
    assert livprep("verify", sources, "--store", store, "--workers", 1).code == 0
    home = str(tmp_path / "home").encode().decode("latin-1")
    changed = {name for name, facts in snapshot(tmp_path).items() if before.get(name) != facts}
    assert {name for name in changed if not name.startswith(home + "/store")} <= {home}
    assert not list(tmp_path.parent.rglob("evil"))
    assert {path.name for path in (store / "cases").iterdir()} == {"lits-003", "zarr.json"}


@pytest.mark.parametrize(
    "name",
    [b"line\nbreak", b"bytes\xff\xfe", b"\xed\xa0\x80surrogate", "right\u202etoleft".encode(), b"n" * 240, b" ", b"-rf",
     b"\x1b[2J", b"a b", b"%s", b"'\"", b"\\", b"..."],
)  # fmt: skip
def test_odd_names_of_folders_are_harmless(livprep: Callable[..., Outcome], tmp_path: Path, name: bytes) -> None:
    root = Path(os.fsdecode(bytes(tmp_path) + b"/in/" + name))
    ircadb_case(root / "a", 5, {"liver": np.full((4, 6, 5), 255, np.uint8)})
    write_series(root / "series", [plain_slice(k) for k in range(3)])
    lits_pair(root / "lits", 3)
    outcome = livprep("ingest", tmp_path / "in", "--store", tmp_path / "store", "--workers", 1, "--json")
    assert outcome.code == 0, outcome
    assert [json.loads(line)["status"] for line in outcome.out.splitlines()] == ["published"] * 2
    told = livprep("inspect", tmp_path / "in")
    assert told.code == 0, told
    assert all(line.isprintable() for line in told.out.splitlines())
    assert len(told.out.splitlines()) == 5
    told.out.encode("utf-8")


# --- what is no plain file --------------------------------------------------------------------------------------


def test_what_is_no_file_is_never_opened(livprep: Callable[..., Outcome], tmp_path: Path) -> None:
    folder = tmp_path / "in"
    lits_pair(folder, 3)
    os.mkfifo(folder / "volume-4.nii")
    os.mkfifo(folder / "PATIENT_DICOM")
    os.mkfifo(folder / "a.zip")
    os.mkfifo(folder / "catalog.yaml")
    (folder / "zero.nii").symlink_to("/dev/zero")
    (folder / "loop").symlink_to(folder)
    (folder / "self").symlink_to("self")
    (folder / "tty").symlink_to("/dev/tty")
    (folder / "proc").symlink_to("/proc/self/fd")
    with socket.socket(socket.AF_UNIX) as listener:
        here = Path.cwd()
        os.chdir(folder)  # names of sockets are short
        listener.bind("volume-5.nii")
        os.chdir(here)
        if os.geteuid() == 0:
            os.mknod(folder / "volume-6.nii", stat.S_IFCHR | 0o600, os.makedev(1, 5))  # /dev/zero
        outcome = livprep("ingest", folder, "--store", tmp_path / "store", "--workers", 1, "--json")
        records = [json.loads(line) for line in outcome.out.splitlines()]
        assert [(record["case"], record["status"]) for record in records] == [("lits-003", "published")]
        assert livprep("inspect", folder).code == 0
        for name in ("volume-4.nii", "volume-5.nii"):
            with pytest.raises(SourceError, match=r"is no regular file|No such device") as caught:
                read_bytes(FileRef(str(folder / name)))  # it took the place of a file after that was found
            assert caught.value.code == "SOURCE_MISSING"


def test_a_fifo_in_the_place_of_a_slice_does_not_hang(tmp_path: Path) -> None:
    case = ircadb_case(tmp_path, 2)
    found = discover([tmp_path], load_catalog())
    (case / "PATIENT_DICOM" / "image_1").unlink()
    os.mkfifo(case / "PATIENT_DICOM" / "image_1")
    with pytest.raises(SourceError, match="image_1: is no regular file"):
        read_case(found.cases[0], load_catalog())


@pytest.mark.parametrize("change", ["gone", "cut", "other", "folder", "zip gone"])
def test_files_that_change_after_they_were_found(tmp_path: Path, change: str) -> None:
    volume, _ = lits_pair(tmp_path / "in", 3)
    if change == "zip gone":
        with zipfile.ZipFile(tmp_path / "in" / "a.zip", "w") as target:
            target.write(volume, volume.name)
        volume.unlink()
    (case,) = discover([tmp_path / "in"], load_catalog()).cases
    if change == "gone":
        volume.unlink()
    elif change == "cut":
        volume.write_bytes(volume.read_bytes()[:-1])
    elif change == "other":
        volume.write_bytes(b"text")
    elif change == "folder":
        volume.unlink()
        volume.mkdir()
    else:
        (tmp_path / "in" / "a.zip").unlink()
    with pytest.raises(SourceError) as caught:
        read_case(case, load_catalog())
    assert caught.value.code == {
        "gone": "SOURCE_MISSING", "cut": "NIFTI_SHORT", "other": "NIFTI_HEADER", "folder": "SOURCE_MISSING",
        "zip gone": "ARCHIVE_BAD",
    }[change]  # fmt: skip


def test_files_that_may_not_be_read_reject_their_case_alone(
    livprep: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lits_pair(tmp_path / "in", 3)
    lits_pair(tmp_path / "in", 4)
    opened = os.open

    def refuse(path: str, *rest: int, **more: int) -> int:
        if str(path).endswith("segmentation-4.nii"):  # a superuser may read everything
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *rest, **more)

    monkeypatch.setattr(bounded.os, "open", refuse)
    outcome = livprep("ingest", tmp_path / "in", "--store", tmp_path / "store", "--workers", 1, "--json")
    codes = {record["case"]: record["code"] for record in map(json.loads, outcome.out.splitlines())}
    assert (outcome.code, codes) == (3, {"lits-003": "", "lits-004": "SOURCE_MISSING"})
    assert "Permission denied" in outcome.out


# --- many -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [5_000, pytest.param(100_000, marks=pytest.mark.nightly)])
def test_very_many_small_files(tmp_path: Path, count: int) -> None:
    folder = tmp_path / "in"
    for k in range(count):
        if k % 1000 == 0:
            (folder / str(k)).mkdir(parents=True)
        (folder / str(k - k % 1000) / f"f{k}").write_bytes(b"x")
    lits_pair(folder, 3)
    (record,) = measured(tmp_path / "small", [folder])
    assert record["codes"] == ["", ""]
    assert record["grown_mb"] < GROWTH_MB
    shutil.rmtree(folder)


def test_a_zip_of_very_many_entries(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as target:
        for k in range(100_000):
            target.writestr(zipfile.ZipInfo(f"d/{k}"), b"")
    assert sum(1 for _ in walk(tmp_path / "a.zip")) == 100_000


def test_entries_of_zips_in_zips_count_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "MAX_MEMBERS", 100)
    inner = bombs.zipped(*((f"{k}", b"") for k in range(30)))
    (tmp_path / "a.zip").write_bytes(bombs.zipped(*((f"{k}.zip", inner) for k in range(5))))
    faults: list = []
    assert sum(1 for _ in walk(tmp_path / "a.zip", faults)) == 90
    assert [error.code for _, error in faults] == ["ARCHIVE_LIMIT"] * 2
    (tmp_path / "b.zip").write_bytes(inner)
    assert sum(1 for _ in walk(tmp_path / "b.zip")) == 30


def test_a_directory_beyond_the_limit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as target:
        for k in range(100):
            target.writestr(f"{k}", b"")
    monkeypatch.setattr(bounded, "MAX_DIRECTORY_BYTES", 2000)
    with pytest.raises(SourceError, match=r"a\.zip: no readable zip \(ValueError\)"):
        list(walk(tmp_path / "a.zip"))
