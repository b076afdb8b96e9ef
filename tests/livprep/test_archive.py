"""Folders and zips as one tree, damaged and hostile ones refused."""

from __future__ import annotations

import gzip
import io
import os
import random
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from building import code_of, zip_folder
from hypothesis import given, settings
from hypothesis import strategies as st

from livprep.cases import FileRef
from livprep.errors import SourceError
from livprep.formats import archive
from livprep.formats.archive import close_archives, read_bytes, uncompressed_size, walk


@pytest.fixture(autouse=True)
def closed_archives() -> Iterator[None]:
    yield
    close_archives()


def zip_bytes(entries: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as target:
        for name, data in entries.items():
            target.writestr(name, data)
    return buffer.getvalue()


def tree(root: Path) -> dict[tuple[str, ...], bytes]:
    return {parts: read_bytes(ref) for parts, ref in walk(root)}


def test_zipped_and_loose_data_look_alike(tmp_path: Path) -> None:
    folder = tmp_path / "case" / "PATIENT_DICOM"
    (folder / "deep").mkdir(parents=True)
    (folder / "image_0").write_bytes(b"zero")
    (folder / "deep" / "image_1").write_bytes(b"one")
    loose = tree(tmp_path / "case")
    assert loose == {
        ("case", "PATIENT_DICOM", "deep", "image_1"): b"one",
        ("case", "PATIENT_DICOM", "image_0"): b"zero",
    }
    zip_folder(folder)
    zipped = {(parts[0], *parts[2:]): data for parts, data in tree(tmp_path / "case").items()}
    assert zipped == loose  # below the zip's stem lies its own top folder


def test_a_single_file_and_a_single_zip_are_trees_too(tmp_path: Path) -> None:
    (tmp_path / "volume-0.nii").write_bytes(b"x")
    assert tree(tmp_path / "volume-0.nii") == {("volume-0.nii",): b"x"}
    (tmp_path / "a.ZIP").write_bytes(zip_bytes({"b/c": b"y"}))
    assert tree(tmp_path / "a.ZIP") == {("a", "b", "c"): b"y"}


def test_zips_in_zips_are_read_without_extracting(tmp_path: Path) -> None:
    inner = zip_bytes({"MASKS_DICOM/liver/image_0": b"mask"})
    (tmp_path / "3Dircadb1.zip").write_bytes(zip_bytes({"3Dircadb1/3Dircadb1.1/MASKS_DICOM.zip": inner}))
    before = sorted(tmp_path.rglob("*"))
    assert tree(tmp_path / "3Dircadb1.zip") == {
        ("3Dircadb1", "3Dircadb1", "3Dircadb1.1", "MASKS_DICOM", "MASKS_DICOM", "liver", "image_0"): b"mask"
    }
    assert sorted(tmp_path.rglob("*")) == before


def test_many_zips_are_read_with_few_open(tmp_path: Path) -> None:
    for k in range(12):
        (tmp_path / f"{k:02d}.zip").write_bytes(zip_bytes({"x": str(k).encode()}))
    files = list(walk(tmp_path))
    for _, ref in [*files, *files]:
        assert int(read_bytes(ref)) == int(Path(ref.path).stem)
    assert len(archive._handles.archives) <= archive._MAX_OPEN


def test_what_systems_leave_behind_is_skipped(tmp_path: Path) -> None:
    (tmp_path / "__MACOSX").mkdir()
    for name in (".DS_Store", "Thumbs.db", "__MACOSX/._a", "kept"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "b.zip").write_bytes(zip_bytes({"__MACOSX/._a": b"", "d/.DS_Store": b"", "d/": b"", "d/kept": b""}))
    assert [parts[-1] for parts, _ in walk(tmp_path)] == ["kept", "kept"]


def test_order_is_sorted(tmp_path: Path) -> None:
    for name in ("b", "a", "c"):
        (tmp_path / name).write_bytes(b"")
    assert [ref.name for _, ref in walk(tmp_path)] == ["a", "b", "c"]


def test_missing_sources_are_named(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="nowhere: no such file or folder") as caught:
        list(walk(tmp_path / "nowhere"))
    assert caught.value.code == "SOURCE_MISSING"
    with pytest.raises(SourceError, match="No such file") as caught:
        read_bytes(FileRef(str(tmp_path / "gone")))
    assert caught.value.code == "SOURCE_MISSING"


def test_missing_entries_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(zip_bytes({"x": b""}))
    with pytest.raises(SourceError, match=r"a\.zip!/y: no such entry in the zip") as caught:
        read_bytes(FileRef(str(tmp_path / "a.zip"), ("y",)))
    assert caught.value.code == "SOURCE_MISSING"


def test_a_file_named_zip_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(b"<html>not found</html>")
    with pytest.raises(SourceError, match=r"a\.zip: no readable zip") as caught:
        list(walk(tmp_path))
    assert caught.value.code == "ARCHIVE_BAD"


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_damaged_entries_are_refused_whatever_their_compression(tmp_path: Path, compression: int) -> None:
    content = random.Random(0).randbytes(4000)
    data = bytearray(zip_bytes({"x": content}, compression))
    (tmp_path / "a.zip").write_bytes(data)
    ref = FileRef(str(tmp_path / "a.zip"), ("x",))
    assert read_bytes(ref) == content
    for offset in range(31, 2000, 131):
        close_archives()
        damaged = bytearray(data)
        damaged[offset : offset + 8] = bytes(b ^ 0xFF for b in damaged[offset : offset + 8])
        (tmp_path / "a.zip").write_bytes(damaged)
        with pytest.raises(SourceError, match=r"a\.zip!/x: the zip entry is damaged") as caught:
            read_bytes(ref)
        assert caught.value.code == "ARCHIVE_BAD"


def test_encrypted_entries_are_refused(tmp_path: Path) -> None:
    data = bytearray(zip_bytes({"x": b"secret"}, zipfile.ZIP_STORED))
    data[6] |= 1  # bit 0 of the general purpose flag, in the local header and in the directory
    data[data.index(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "a.zip").write_bytes(data)
    with pytest.raises(SourceError, match="RuntimeError") as caught:
        read_bytes(FileRef(str(tmp_path / "a.zip"), ("x",)))
    assert caught.value.code == "ARCHIVE_BAD"


def test_zips_nested_too_deep_are_refused(tmp_path: Path) -> None:
    data = zip_bytes({"x": b""})
    for _ in range(archive.MAX_DEPTH):
        data = zip_bytes({"inner.zip": data})
    (tmp_path / "a.zip").write_bytes(data)
    with pytest.raises(SourceError, match=f"zips nested deeper than {archive.MAX_DEPTH}") as caught:
        list(walk(tmp_path))
    assert caught.value.code == "ARCHIVE_LIMIT"


def test_zips_of_too_many_entries_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "MAX_MEMBERS", 3)
    (tmp_path / "a.zip").write_bytes(zip_bytes({str(k): b"" for k in range(4)}))
    with pytest.raises(SourceError, match="4 entries, expected at most 3") as caught:
        list(walk(tmp_path))
    assert caught.value.code == "ARCHIVE_LIMIT"


def test_entries_that_expand_too_far_are_refused_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "_RATIO_FLOOR_BYTES", 1000)
    monkeypatch.setattr(archive, "MAX_RATIO", 50.0)
    (tmp_path / "a.zip").write_bytes(zip_bytes({"bomb": bytes(100_000), "mask": bytes(900), "scan": os.urandom(5000)}))
    with pytest.raises(SourceError, match="to 100000 bytes, expected at most 50-fold") as caught:
        read_bytes(FileRef(str(tmp_path / "a.zip"), ("bomb",)))
    assert caught.value.code == "ARCHIVE_LIMIT"
    assert read_bytes(FileRef(str(tmp_path / "a.zip"), ("mask",))) == bytes(900)
    assert len(read_bytes(FileRef(str(tmp_path / "a.zip"), ("scan",)))) == 5000
    monkeypatch.setattr(archive, "MAX_MEMBER_BYTES", 4000)
    with pytest.raises(SourceError, match="and 4000 bytes"):
        read_bytes(FileRef(str(tmp_path / "a.zip"), ("scan",)))


def test_limits_hold_for_zips_in_zips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "MAX_MEMBER_BYTES", 4000)
    inner = zip_bytes({"x": os.urandom(5000)}, zipfile.ZIP_STORED)
    (tmp_path / "a.zip").write_bytes(zip_bytes({"inner.zip": inner}))
    with pytest.raises(SourceError, match="and 4000 bytes") as caught:
        list(walk(tmp_path))
    assert caught.value.code == "ARCHIVE_LIMIT"


def test_a_bad_zip_need_not_hide_the_rest(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(b"PK")
    (tmp_path / "b").write_bytes(b"")
    faults: list = []
    assert [parts for parts, _ in walk(tmp_path, faults)] == [(tmp_path.name, "b")]
    ((parts, error),) = faults
    assert (parts, error.code) == ((tmp_path.name, "a"), "ARCHIVE_BAD")
    with pytest.raises(SourceError, match="no readable zip"):  # what was asked for itself
        list(walk(tmp_path / "a.zip", []))


def test_names_that_climb_out_are_skipped_and_nothing_is_written(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    names = ["../../evil", "/etc/evil", "a/../../evil", "./ok", "C:\\evil"]
    (folder / "a.zip").write_bytes(zip_bytes(dict.fromkeys(names, b"x")))
    found = {parts for parts, _ in walk(folder)}
    assert found == {("in", "a", "etc", "evil"), ("in", "a", "ok"), ("in", "a", "C:\\evil")}
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a.zip", "in"]


def test_links_out_of_the_source_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").write_bytes(b"x")
    root = tmp_path / "root"
    root.mkdir()
    (root / "file").symlink_to(tmp_path / "outside" / "secret")
    (root / "folder").symlink_to(tmp_path / "outside")
    (root / "broken").symlink_to(tmp_path / "nowhere")
    (root / "real").write_bytes(b"y")
    (root / "inside").symlink_to(root / "real")
    assert tree(root) == {("root", "real"): b"y", ("root", "inside"): b"y"}
    outward: list[tuple[str, ...]] = []
    list(walk(root, outward=outward))
    assert outward == [("root", "file"), ("root", "folder")]


def test_what_operating_systems_lay_beside_files_is_no_file(tmp_path: Path) -> None:
    names = ["._scan.nii", ".DS_Store", "Thumbs.db", "desktop.ini", "scan.nii"]
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name in names:
            (tmp_path / name).write_bytes(b"x")
            archive.writestr(f"b/{name}", b"x")
    assert [parts[-1] for parts, _ in walk(tmp_path)] == ["scan.nii", "scan.nii"]


def test_the_source_itself_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "x").write_bytes(b"1")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert tree(tmp_path / "link") == {("link", "x"): b"1"}


def test_links_in_a_circle_end(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "a").mkdir(parents=True)
    (root / "a" / "x").write_bytes(b"")
    for name in ("up", "down", "round"):  # three at each level: 3 to the power of 40 paths
        (root / "a" / name).symlink_to(root)
    (root / "itself").symlink_to(root / "itself")
    assert [parts for parts, _ in walk(root)] == [("root", "a", "x")]


def test_folders_linked_many_times_are_entered_a_few_times(tmp_path: Path) -> None:
    """Ten levels of two links to the next would be a thousand paths to one file."""
    root = tmp_path / "root"
    for level in range(11):
        (root / str(level)).mkdir(parents=True)
    for level in range(10):
        for name in "ab":
            (root / str(level) / name).symlink_to(root / str(level + 1))
    (root / "10" / "x").write_bytes(b"")
    assert 1 <= len(list(walk(root))) <= 20


def test_pipes_and_sockets_are_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "image_0")
    assert list(walk(tmp_path)) == []
    assert list(walk(tmp_path / "image_0")) == []


def test_folders_that_cannot_be_listed_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "locked").mkdir()
    listed = Path.iterdir

    def iterdir(path: Path) -> Iterator[Path]:
        if path.name == "locked":
            raise PermissionError(13, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(Path, "iterdir", iterdir)
    with pytest.raises(SourceError, match="locked: Permission denied") as caught:
        list(walk(tmp_path))
    assert caught.value.code == "SOURCE_MISSING"


def test_a_reference_prints_odd_names_harmlessly(tmp_path: Path) -> None:
    name = b"scan\xff\n\x1b[2J.nii"
    (Path(os.fsdecode(bytes(tmp_path) + b"/" + name))).write_bytes(b"")
    ((_, ref),) = walk(tmp_path)
    assert str(ref).isprintable()
    str(ref).encode("utf-8")
    assert read_bytes(ref) == b""


def test_sizes_are_told_without_reading(tmp_path: Path) -> None:
    (tmp_path / "plain").write_bytes(bytes(1000))
    (tmp_path / "packed.gz").write_bytes(gzip.compress(bytes(5000)))
    (tmp_path / "tiny.gz").write_bytes(b"x")
    (tmp_path / "a.zip").write_bytes(zip_bytes({"x": bytes(700), "y.gz": os.urandom(100)}))
    (tmp_path / "bad.zip").write_bytes(b"")
    inside = str(tmp_path / "a.zip")
    refs = [FileRef(str(tmp_path / "plain")), FileRef(str(tmp_path / "packed.gz")), FileRef(inside, ("x",))]
    assert [uncompressed_size(ref) for ref in refs] == [1000, 5000, 700]
    assert uncompressed_size(FileRef(inside, ("y.gz",))) == 300
    unknown = [FileRef(inside, ("z",)), FileRef(str(tmp_path / "gone")), FileRef(str(tmp_path / "bad.zip"), ("x",))]
    assert [uncompressed_size(ref) for ref in [*unknown, FileRef(str(tmp_path / "tiny.gz"))]] == [0, 0, 0, 0]


ARCHIVE = zip_bytes(
    {f"d/image_{k}": np.random.default_rng(k).bytes(200) + bytes(300) for k in range(3)}
    | {"inner.zip": zip_bytes({"x": b"y" * 50}, zipfile.ZIP_LZMA)}
)


@given(
    st.lists(st.tuples(st.integers(0, len(ARCHIVE) - 1), st.integers(0, 255)), min_size=1, max_size=6), st.integers()
)
@settings(max_examples=400)
def test_mutated_zips_are_read_right_or_refused(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[int, int]], cut: int
) -> None:
    close_archives()
    data = bytearray(ARCHIVE)
    for offset, value in changes:
        data[offset] = value
    if cut % 4 == 0:
        del data[cut % len(data) :]
    path = tmp_path_factory.getbasetemp() / "mutated.zip"
    path.write_bytes(data)

    def read_all() -> None:
        for _, ref in walk(path):
            read_bytes(ref)
            uncompressed_size(ref)

    assert code_of(read_all) in ("", "ARCHIVE_BAD", "ARCHIVE_LIMIT", "SOURCE_MISSING")
