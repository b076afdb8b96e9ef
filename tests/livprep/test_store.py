"""The store: what is written is read back, work appears by rename, damage is seen."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import pickle
import shutil
import stat
import threading
from pathlib import Path

import numpy as np
import pytest
from building import flip_bit, scan, tree_hash
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from livprep.errors import StoreError, UsageError
from livprep.geometry import Geometry
from livprep.labels import Label, label_counts
from livprep.prepare import Preparation
from livprep.schema import INDEX_POINTS, SCHEMA_VERSION, CaseMeta, SourceMeta
from livprep.splits import make_split
from livprep.store import (
    CaseContent,
    CaseStore,
    add_window,
    change_preparation,
    create_store,
    is_store,
    layout,
    open_store,
    pack,
    publish_case,
    remove_case,
    remove_staging,
    remove_window,
    staging_entries,
    writing,
)
from livprep.volume import LabelledVolume
from livprep.windows import Window

NATIVE = Preparation()
WINDOW = Window(40, 220)


def content(name: str = "lits-000", volume: LabelledVolume | None = None, digest: str = "d") -> CaseContent:
    volume = volume or scan((5, 70, 66))
    grid = volume.geometry
    counts = None if volume.label_map is None else label_counts(volume.label_map.labels)
    meta = CaseMeta(
        schema_version=SCHEMA_VERSION,
        case=name,
        dataset="lits",
        patient=name,
        source=SourceMeta(kind="nifti", files=2, bytes=1, digest=digest),
        settings_digest="s",
        grid=grid.as_dict(),
        affine_lps=grid.affine_lps.tolist(),
        affine_ras=grid.affine_ras.tolist(),
        source_grid=grid.as_dict(),
        source_affine_ras=grid.affine_ras.tolist(),
        source_orientation=grid.orientation,
        source_spacing_mm=list(grid.spacing_mm),
        hu_min=int(volume.image.hu.min()),
        hu_max=int(volume.image.hu.max()),
        label_map={label.name.lower(): int(label) for label in Label},
        label_voxels=counts,
        fingerprint="f",
        repairs=[],
        warnings=[],
    )
    return CaseContent(meta, volume)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    path = tmp_path / "liver.zarr"
    create_store(path, NATIVE, "balanced", "digest")
    return path


# --- packing ----------------------------------------------------------------------------------------------------


@given(
    hnp.arrays(np.int16, (2, 3, 4), elements=st.integers(-32768, 32767)),
    hnp.arrays(np.uint8, (2, 3, 4), elements=st.integers(0, 2)),
)
def test_packed_is_clipped_hu_and_label(hu: np.ndarray, labels: np.ndarray) -> None:
    packed = pack(hu, labels)
    assert packed.dtype == np.uint16
    np.testing.assert_array_equal((packed & 0x0FFF).astype(int) - 1024, np.clip(hu, -1024, 3071))
    np.testing.assert_array_equal(packed >> 12, labels)
    np.testing.assert_array_equal(pack(hu, None) >> 12, 15)


# --- round trip -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("profile", ["fast", "balanced", "small"])
def test_what_is_written_is_read_back(tmp_path: Path, profile: str) -> None:
    path = tmp_path / "s"
    create_store(path, NATIVE, profile, "digest")
    volume = scan((5, 70, 66))
    size = publish_case(path, content(volume=volume), profile)
    case = open_store(path)["lits-000"]
    assert size == case.bytes_on_disk()
    np.testing.assert_array_equal(case.read_hu(), volume.image.hu)
    np.testing.assert_array_equal(case.read_labels(), volume.label_map.labels)
    np.testing.assert_array_equal(case.read_packed(), pack(volume.image.hu, volume.label_map.labels))
    add_window(path, "lits-000", WINDOW, 0)
    np.testing.assert_array_equal(case.read_window(WINDOW.name), WINDOW.evaluate(volume.image.hu))
    assert (case.geometry, case.source_geometry) == (volume.geometry, volume.geometry)
    assert (case.shape_zyx, case.has_labels, case.dataset, case.patient) == ((5, 70, 66), True, "lits", "lits-000")
    assert (case.hu_min, case.hu_max) == (int(volume.image.hu.min()), int(volume.image.hu.max()))
    assert case.label_counts == label_counts(volume.label_map.labels)


@given(st.tuples(*[st.tuples(st.integers(0, 69), st.integers(1, 70)) for _ in range(3)]))
@settings(max_examples=60)
def test_regions_are_parts_of_the_whole(small_store: Path, bounds: tuple) -> None:
    case = open_store(small_store)["ircadb-01"]
    region = tuple(
        slice(min(start, n - 1), min(n, min(start, n - 1) + size))
        for (start, size), n in zip(bounds, case.shape_zyx, strict=True)
    )
    np.testing.assert_array_equal(case.read_hu(region), case.read_hu()[region])
    np.testing.assert_array_equal(case.read_labels(region), case.read_labels()[region])
    np.testing.assert_array_equal(case.read_packed(region), case.read_packed()[region])
    np.testing.assert_array_equal(case.read_window(WINDOW.name, region), case.read_window(WINDOW.name)[region])


def test_stored_channels_and_packed_arrays_follow_from_stored_hu(small_store: Path) -> None:
    for case in open_store(small_store).values():
        hu = case.read_hu()
        stacked = np.stack([case.read_window(name) for name in case.window_names])
        np.testing.assert_array_equal(stacked, case.windows.apply(hu))
        np.testing.assert_array_equal(case.read_packed(), pack(hu, case.read_labels()))


def test_unlabelled_cases(store: Path) -> None:
    volume = LabelledVolume(scan((5, 70, 66)).image)
    publish_case(store, content(volume=volume), "balanced")
    case = open_store(store)["lits-000"]
    assert (case.has_labels, case.label_counts, case.class_count(Label.TUMOR)) == (False, None, 0)
    assert (case.read_packed() >> 12 == 15).all()
    assert case.class_points(Label.LIVER).shape == (0, 3)
    with pytest.raises(StoreError, match="lits-000: has no labels"):
        case.read_labels()
    dataset = case.to_xarray()
    assert sorted(dataset.data_vars) == ["hu"]


def test_class_points_are_voxels_of_their_class(store: Path) -> None:
    labels = np.zeros((5, 70, 66), np.uint8)
    labels[1:4, 10:60, 10:60] = 1
    labels[2, 20:23, 30] = 2
    volume = scan((5, 70, 66))
    object.__setattr__(volume.label_map, "labels", labels)
    publish_case(store, content(volume=volume), "balanced")
    case = open_store(store)["lits-000"]
    for label in Label:
        points = case.class_points(label)
        assert points.dtype == np.int32
        assert len(points) == min(INDEX_POINTS, case.class_count(label)) == min(INDEX_POINTS, (labels == label).sum())
        assert (labels[tuple(points.T)] == label).all()
        assert len(np.unique(points, axis=0)) == len(points)
    assert case.class_points(Label.TUMOR).tolist() == [[2, 20, 30], [2, 21, 30], [2, 22, 30]]


def test_class_points_are_drawn_without_bias(store: Path) -> None:
    labels = np.zeros((40, 40, 40), np.uint8)
    labels[:, :, 20:] = 1  # 32,000 voxels of each of two labels
    volume = scan((40, 40, 40))
    object.__setattr__(volume.label_map, "labels", labels)
    publish_case(store, content(volume=volume), "balanced")
    case = open_store(store)["lits-000"]
    assert len(case.class_points(Label.TUMOR)) == 0
    for label in (Label.BACKGROUND, Label.LIVER):
        points = case.class_points(label)
        assert len(points) == INDEX_POINTS
        spread = (40**2 / 12) ** 0.5 / INDEX_POINTS**0.5
        assert abs(points[:, 0].mean() - 19.5) < 4 * spread
        assert abs(points[:, 1].mean() - 19.5) < 4 * spread
        assert set(points[:, 0]) == set(range(40))


def test_rebuilding_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in "ab":
        create_store(tmp_path / name, NATIVE, "balanced", "digest")
        publish_case(tmp_path / name, content(), "balanced")
        add_window(tmp_path / name, "lits-000", WINDOW, 0)
    assert tree_hash(tmp_path / "a") == tree_hash(tmp_path / "b")


def test_manifests_name_every_file_with_its_hash(small_store: Path) -> None:
    for case in open_store(small_store).values():
        manifests = case.manifests()
        assert list(manifests) == ["hu", "train", "index", "windows/wl40_ww220", "windows/wl60_ww140"]
        listed = set()
        for component, manifest in manifests.items():
            assert manifest["source_digest"] == case.meta.source.digest
            for name, facts in manifest["files"].items():
                path = case.path / component / name
                assert (path.stat().st_size, layout.file_sha256(path)) == (facts["size"], facts["sha256"])
                listed.add(path)
            listed.add(case.path / component / "manifest.json")
        others = {path for path in case.path.rglob("*") if path.is_file()} - listed
        assert others == {case.path / "zarr.json", case.path / "windows" / "zarr.json"}


def test_no_path_time_or_text_of_the_source_is_stored(small_store: Path) -> None:
    for path in small_store.rglob("*.json"):
        if path.relative_to(small_store).parts[0] != "journal":
            text = path.read_text()
            assert "/tmp" not in text
            assert "liver_0" not in text  # PatientName
            assert "20090527" not in text  # study and birth date


# --- opening ----------------------------------------------------------------------------------------------------


def test_a_store_is_a_sorted_mapping(small_store: Path) -> None:
    opened = open_store(str(small_store))
    assert list(opened) == sorted(opened) == ["ircadb-01", "ircadb-02", "ircadb-07", "lits-028", "lits-048", "lits-068"]
    assert len(opened) == 6
    assert "ircadb-01" in opened
    assert "ircadb-03" not in opened
    assert opened.preparation == NATIVE
    assert opened.case("lits-028").patient == "ircadb-01"
    assert is_store(small_store)


@pytest.mark.parametrize(
    "name", ["", ".", "..", "/", "ircadb-01/hu", "../cases/ircadb-01", "ircadb-99", ".staging", "a\0"]
)
def test_names_that_are_no_case_reach_nothing(small_store: Path, name: str) -> None:
    opened = open_store(small_store)
    with pytest.raises(KeyError):
        opened[name]
    with pytest.raises(StoreError, match="has no case") as caught:
        opened.case(name)
    assert caught.value.code == "STORE_CASE_UNKNOWN"


def test_stores_and_cases_travel_as_paths(small_store: Path) -> None:
    opened = open_store(small_store)
    case = opened["ircadb-02"]
    case.read_hu()
    data = pickle.dumps((opened, case))
    assert len(data) < 1000
    again, other = pickle.loads(data)
    assert list(again) == list(opened)
    assert repr(other) == repr(case) == f"CaseStore({str(small_store)!r}, 'ircadb-02')"
    np.testing.assert_array_equal(other.read_hu(), case.read_hu())


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no such store") as caught:
        open_store(tmp_path / "none")
    assert caught.value.code == "STORE_MISSING"
    assert not is_store(tmp_path / "none")


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        "{",
        "[]",
        "{}",
        '{"attributes": {}}',
        '{"attributes": {"livprep": 3}}',
        '{"attributes": {"livprep": {}}}',
        '{"attributes": {"livprep": {"schema_version": "1"}}}',
        '{"attributes": {"livprep": {"schema_version": 0}}}',
        '{"attributes": {"livprep": {"schema_version": 1}}}',
    ],
)
def test_something_else_there(tmp_path: Path, text: str | None) -> None:
    (tmp_path / "s").mkdir()
    if text is not None:
        (tmp_path / "s" / "zarr.json").write_text(text)
    with pytest.raises(StoreError) as caught:
        open_store(tmp_path / "s")
    assert caught.value.code == "STORE_UNREADABLE"


def change_root(store: Path, **facts: object) -> None:
    node = json.loads((store / "zarr.json").read_text())
    node["attributes"]["livprep"].update(facts)
    (store / "zarr.json").write_text(json.dumps(node))


def test_a_newer_store_is_refused(store: Path) -> None:
    change_root(store, schema_version=SCHEMA_VERSION + 1)
    with pytest.raises(StoreError, match=f"schema version {SCHEMA_VERSION + 1}, this livprep reads up to") as caught:
        open_store(store)
    assert caught.value.code == "STORE_NEWER"


@pytest.mark.parametrize(
    "facts",
    [{"preparation": {}}, {"preparation": {"spacing_mm": [1, 2], "interpolation": "cubic"}}, {"extra": 1},
     {"preparation": {"spacing_mm": [-1, 1, 1], "interpolation": "cubic"}}, {"profile": "huge"}],
)  # fmt: skip
def test_unusable_attributes_of_the_store(store: Path, facts: dict) -> None:
    change_root(store, **facts)
    with pytest.raises(StoreError, match="unusable store attributes") as caught:
        open_store(store)
    assert caught.value.code == "STORE_UNREADABLE"


def test_a_store_without_its_cases_folder(store: Path) -> None:
    shutil.rmtree(store / "cases")
    with pytest.raises(StoreError, match="its folder cases is missing") as caught:
        list(open_store(store))
    assert caught.value.code == "STORE_UNREADABLE"


def test_unusable_attributes_of_a_case(store_copy: Path) -> None:
    path = store_copy / "cases" / "ircadb-01" / "zarr.json"
    node = json.loads(path.read_text())
    node["attributes"]["livprep"]["hu_min"] = "low"
    path.write_text(json.dumps(node))
    with pytest.raises(StoreError, match="unusable case attributes") as caught:
        _ = open_store(store_copy)["ircadb-01"].meta
    assert caught.value.code == "STORE_UNREADABLE"
    node["attributes"]["livprep"]["schema_version"] = 99
    path.write_text(json.dumps(node))
    with pytest.raises(StoreError, match="schema version 99") as caught:
        _ = open_store(store_copy)["ircadb-01"].meta
    assert caught.value.code == "STORE_NEWER"


# --- creating ---------------------------------------------------------------------------------------------------


def test_creating_twice_is_creating_once(store: Path) -> None:
    before = tree_hash(store)
    create_store(store, NATIVE, "balanced", "another digest")
    assert tree_hash(store) == before
    assert list(open_store(store)) == []


@pytest.mark.parametrize(("preparation", "profile"), [(Preparation((1.0, 1.0, 1.0)), "balanced"), (NATIVE, "fast")])
def test_another_preparation_or_profile_is_refused(store: Path, preparation: Preparation, profile: str) -> None:
    with pytest.raises(StoreError, match=f"asked for .*, profile {profile}") as caught:
        create_store(store, preparation, profile, "digest")
    assert caught.value.code == "STORE_PREPARATION"


def test_no_store_is_made_among_other_files(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("x")
    with pytest.raises(StoreError, match="no livprep group") as caught:
        create_store(tmp_path, NATIVE, "balanced", "digest")
    assert caught.value.code == "STORE_UNREADABLE"
    with pytest.raises(StoreError, match="is a file") as caught:
        create_store(tmp_path / "mine", NATIVE, "balanced", "digest")
    assert caught.value.code == "STORE_UNREADABLE"
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


@pytest.mark.parametrize("step", range(8))
def test_a_creation_killed_at_any_step_can_be_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    path, seen = tmp_path / "s", iter(range(100))
    for name in ("mkdir", "replace"):
        original = getattr(Path, name)

        def killed(self: Path, *arguments: object, original=original, **options: object) -> object:
            if next(seen) == step:
                raise KeyboardInterrupt
            return original(self, *arguments, **options)

        monkeypatch.setattr(Path, name, killed)
    try:
        create_store(path, NATIVE, "balanced", "digest")
    except KeyboardInterrupt:
        assert not is_store(path)
    monkeypatch.undo()
    create_store(path, NATIVE, "balanced", "digest")
    create_store(tmp_path / "other", NATIVE, "balanced", "digest")
    assert tree_hash(path) == tree_hash(tmp_path / "other")


def test_changing_the_preparation_empties_the_store_but_keeps_its_records(store_copy: Path) -> None:
    store = open_store(store_copy)
    store.write_split(make_split({name: case.patient for name, case in store.items()}))
    change_preparation(store_copy, Preparation((3.0, 3.0, 3.0)), "fast", "digest")
    again = open_store(store_copy)
    assert (list(again), again.preparation.spacing_mm, again.meta.profile) == ([], (3.0, 3.0, 3.0), "fast")
    assert again.split_names() == ["default"]
    assert staging_entries(store_copy) == []


# --- publishing -------------------------------------------------------------------------------------------------


def test_the_first_writer_wins_and_the_second_leaves_nothing(store: Path) -> None:
    assert publish_case(store, content(), "balanced") > 0
    before = tree_hash(store)
    assert publish_case(store, content(volume=scan((3, 4, 5))), "balanced") == 0
    assert tree_hash(store) == before
    assert staging_entries(store) == []


def test_replacing_takes_the_old_case_away(store: Path) -> None:
    publish_case(store, content(), "balanced")
    add_window(store, "lits-000", WINDOW, 0)
    assert publish_case(store, content(volume=scan((3, 4, 5))), "balanced", replace=True) > 0
    case = open_store(store)["lits-000"]
    assert (case.shape_zyx, case.window_names) == ((3, 4, 5), [WINDOW.name])
    np.testing.assert_array_equal(case.read_window(WINDOW.name), WINDOW.apply(case.read_hu()))
    assert publish_case(store, content("lits-001"), "balanced", replace=True) > 0
    assert staging_entries(store) == []


def test_replacing_never_leaves_the_place_empty(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish_case(store, content(), "balanced")
    seen = []
    real = layout._exchange
    monkeypatch.setattr(layout, "withdraw", lambda *_: pytest.fail("the case was taken away first"))
    monkeypatch.setattr(layout, "_exchange", lambda one, other: seen.append(other.exists()) or real(one, other))
    publish_case(store, content(volume=scan((3, 4, 5))), "balanced", replace=True)
    assert seen == [True]
    assert open_store(store)["lits-000"].shape_zyx == (3, 4, 5)


def test_a_file_system_that_cannot_exchange_names_takes_two_renames(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layout, "_exchange", lambda one, other: False)
    publish_case(store, content(), "balanced")
    add_window(store, "lits-000", WINDOW, 0)
    publish_case(store, content(volume=scan((3, 4, 5))), "balanced", replace=True)
    case = open_store(store)["lits-000"]
    assert (case.shape_zyx, case.window_names) == ((3, 4, 5), [WINDOW.name])
    assert staging_entries(store) == []


def test_a_file_system_without_locks_is_written_all_the_same(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Lustre without `-o flock`; a lock that fails otherwise is a fault."""
    number = errno.ENOSYS

    def flock(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(layout.fcntl, "flock", flock)
    assert publish_case(store, content(), "balanced") > 0
    assert add_window(store, "lits-000", WINDOW, 0) > 0
    assert remove_window(store, "lits-000", WINDOW.name)
    number = errno.EIO
    with pytest.raises(OSError, match="Input/output error"):
        add_window(store, "lits-000", WINDOW, 0)


def test_a_file_system_that_flushes_no_folders_is_written_all_the_same(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As CIFS. A file that cannot be flushed is a fault."""
    fsync, refused = os.fsync, stat.S_ISDIR

    def picky(handle: int) -> None:
        if refused(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", picky)
    assert publish_case(store, content(), "balanced") > 0
    refused = stat.S_ISREG
    with pytest.raises(OSError, match="Invalid argument"):
        publish_case(store, content(), "balanced", replace=True)


def test_a_taken_place_is_known_by_what_lies_there(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """sshfs says EPERM where others say ENOTEMPTY."""
    publish_case(store, content(), "balanced")

    def rename(self: Path, target: Path) -> Path:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(Path, "rename", rename)
    assert publish_case(store, content(), "balanced") == 0
    with pytest.raises(PermissionError):
        layout.publish(store / layout.STAGING, layout.case_path(store, "lits-001"))


def test_a_case_that_lost_its_metadata_is_made_again_or_removed(store: Path) -> None:
    """It is invisible, and must not stand in the way as 'another run published it first'."""
    publish_case(store, content(), "balanced")
    add_window(store, "lits-000", WINDOW, 0)
    before = tree_hash(store)
    metadata = layout.case_path(store, "lits-000") / "zarr.json"
    metadata.unlink()
    assert "lits-000" not in open_store(store)
    assert publish_case(store, content(), "balanced") > 0
    assert tree_hash(store) == before
    metadata.unlink()
    remove_case(store, "lits-000")
    assert not metadata.parent.exists()
    assert staging_entries(store) == []


def test_who_may_write_into_a_store_may_lock_it(store: Path) -> None:
    """A store of a group: the umask says who may write, for locks as for all else."""
    before = os.umask(0o002)
    try:
        with layout.locked(store, "lits-000"):
            assert (store / layout.STAGING / "lits-000.lock").stat().st_mode & 0o777 == 0o664
    finally:
        os.umask(before)


@pytest.mark.parametrize("at", ["withdraw", "publish"])
def test_stopped_between_the_two_renames_the_channels_come_back(
    store: Path, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    publish_case(store, content(), "balanced")
    add_window(store, "lits-000", WINDOW, 0)
    before = tree_hash(store)

    def stop(*_: object) -> bool:
        raise KeyboardInterrupt

    monkeypatch.setattr(layout, "_exchange", lambda one, other: False)
    monkeypatch.setattr(layout, at, stop)
    with pytest.raises(KeyboardInterrupt):
        publish_case(store, content(), "balanced", replace=True)
    monkeypatch.undo()
    publish_case(store, content(), "balanced")
    assert tree_hash(store) == before
    assert open_store(store)["lits-000"].window_names == [WINDOW.name]


def test_a_channel_that_comes_or_goes_while_a_case_is_replaced_does_so_in_the_new_case(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish_case(store, content(), "balanced")
    add_window(store, "lits-000", WINDOW, 0)
    real = writing.channels_of
    calls = []

    def meanwhile(path: Path, case_id: str) -> list:
        if calls:
            remove_window(store, "lits-000", WINDOW.name)
            add_window(store, "lits-000", Window(0, 400), 1)
        calls.append(case_id)
        return real(path, case_id)

    monkeypatch.setattr(writing, "channels_of", meanwhile)
    monkeypatch.setattr(layout, "locked", lambda *_: contextlib.nullcontext())  # this thread would wait for itself
    publish_case(store, content(), "balanced", replace=True)
    assert open_store(store)["lits-000"].window_names == ["wl0_ww400"]


def test_another_preparation_keeps_the_channels_and_a_removed_case_does_not(store: Path) -> None:
    for name in ("lits-000", "lits-001"):
        publish_case(store, content(name), "balanced")
        add_window(store, name, WINDOW, 0)
    change_preparation(store, Preparation((1.0, 1.0, 1.0)), "small", "digest")
    assert list(open_store(store)) == []
    assert staging_entries(store) == []
    assert remove_staging(store) == []
    publish_case(store, content(), "small")
    assert open_store(store)["lits-000"].window_names == [WINDOW.name]
    publish_case(store, content("lits-001"), "small")
    remove_case(store, "lits-001")
    publish_case(store, content("lits-001"), "small")
    assert open_store(store)["lits-001"].window_names == []
    assert not list((store / ".staging").glob("*.json"))


def test_many_writers_at_once_leave_one_copy(store: Path) -> None:
    sizes: list[int] = []
    threads = [
        threading.Thread(target=lambda: sizes.append(publish_case(store, content(), "balanced"))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(sizes) == 4
    assert sum(size > 0 for size in sizes) == 1
    assert staging_entries(store) == []


@pytest.mark.parametrize("call", range(0, 40, 3))
def test_a_full_disk_publishes_nothing_and_leaves_nothing(
    store: Path, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    publish_case(store, content("lits-001"), "balanced")
    before, seen, real = tree_hash(store), iter(range(10_000)), os.fsync

    def full(handle: int) -> None:
        if next(seen) == call:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(handle)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        publish_case(store, content(), "balanced")
    monkeypatch.undo()
    assert tree_hash(store) == before
    assert staging_entries(store) == []
    assert publish_case(store, content(), "balanced") > 0


def test_a_rename_that_fails_for_another_reason_is_raised(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Path, target: Path) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(Path, "rename", broken)
    with pytest.raises(OSError, match="Input/output error"):
        publish_case(store, content(), "balanced")
    monkeypatch.undo()
    assert list(open_store(store)) == []


def test_staging_of_killed_runs_is_unseen_and_collected(store: Path) -> None:
    publish_case(store, content(), "balanced")
    dead = store / ".staging" / "lits-001.0123"
    shutil.copytree(store / "cases" / "lits-000", dead)
    assert list(open_store(store)) == ["lits-000"]
    assert staging_entries(store) == [dead]
    assert remove_staging(store) == ["lits-001.0123"]
    assert remove_staging(store) == []
    shutil.rmtree(store / ".staging")
    assert staging_entries(store) == []
    assert publish_case(store, content("lits-002"), "balanced") > 0


def test_staged_folders_go_although_a_thread_still_writes_into_them(store: Path) -> None:
    """As zarr's own thread does for a moment in a run that is stopped."""
    stopping, written = threading.Event(), threading.Event()

    def write(folder: Path) -> None:
        for k in range(200):
            with contextlib.suppress(OSError):
                folder.mkdir(exist_ok=True)
                (folder / str(k)).write_bytes(b"x")
            written.set()
            if stopping.is_set() and k > 20:
                return

    with layout.staged(store, "case") as folder:
        thread = threading.Thread(target=write, args=(folder,))
        thread.start()
        written.wait()
        stopping.set()
    thread.join()
    assert staging_entries(store) == []


def test_removing_a_case(store_copy: Path) -> None:
    before = tree_hash(store_copy)
    remove_case(store_copy, "ircadb-02")
    after = tree_hash(store_copy)
    assert {name for name in before if name not in after} == {name for name in before if "/ircadb-02/" in name}
    assert all(before[name] == digest for name, digest in after.items())
    with pytest.raises(KeyError):
        remove_case(store_copy, "ircadb-02")


# --- windows ----------------------------------------------------------------------------------------------------


def test_adding_and_removing_a_window_touches_nothing_else(store_copy: Path) -> None:
    before = tree_hash(store_copy)
    assert add_window(store_copy, "ircadb-01", Window(100, 50, "narrow"), 2) > 0
    case = open_store(store_copy)["ircadb-01"]
    assert case.window_names == ["wl40_ww220", "wl60_ww140", "narrow"]
    changed = {name for name, digest in tree_hash(store_copy).items() if before.get(name) != digest}
    assert all(name == "cases/ircadb-01/zarr.json" or "/windows/narrow/" in name for name in changed)
    assert remove_window(store_copy, "ircadb-01", "narrow")
    assert tree_hash(store_copy) == before
    assert not remove_window(store_copy, "ircadb-01", "narrow")
    assert staging_entries(store_copy) == []


def test_the_same_window_again_is_no_work(store_copy: Path) -> None:
    before = tree_hash(store_copy)
    assert add_window(store_copy, "ircadb-01", WINDOW, 0) == 0
    assert tree_hash(store_copy) == before


def test_another_window_of_a_taken_name_is_refused(store_copy: Path) -> None:
    with pytest.raises(UsageError, match="window wl40_ww220 is stored with WL 40 WW 220 HU") as caught:
        add_window(store_copy, "ircadb-01", Window(41, 220, "wl40_ww220"), 0)
    assert caught.value.code == "STORE_WINDOW_EXISTS"


def test_channels_are_in_the_order_of_their_numbers_then_names(store: Path) -> None:
    publish_case(store, content(), "balanced")
    for name, order in (("b", 1), ("c", 0), ("a", 1)):
        add_window(store, "lits-000", Window(40, 220, name), order)
    assert open_store(store)["lits-000"].window_names == ["c", "a", "b"]


def test_windows_added_at_once_are_all_there(store: Path) -> None:
    publish_case(store, content(), "balanced")
    windows = [Window(40, 100 + k) for k in range(4)]
    threads = [
        threading.Thread(target=add_window, args=(store, "lits-000", window, k)) for k, window in enumerate(windows)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    case = open_store(store)["lits-000"]
    assert [window.width_hu for window in case.windows] == [100, 101, 102, 103]
    assert {f"windows/{window.name}" for window in windows} <= set(consolidated(case))


def consolidated(case: CaseStore) -> list[str]:
    return list(json.loads((case.path / "zarr.json").read_text())["consolidated_metadata"]["metadata"])


@pytest.mark.parametrize("adding", [True, False])
def test_a_run_killed_between_rename_and_index_is_mended_by_the_next(
    store_copy: Path, monkeypatch: pytest.MonkeyPatch, adding: bool
) -> None:
    window = Window(100, 50, "narrow")
    if not adding:
        add_window(store_copy, "ircadb-01", window, 2)

    def killed(group: Path) -> None:
        if group.name == "ircadb-01":
            raise KeyboardInterrupt
        consolidate(group)

    consolidate = layout.consolidate
    monkeypatch.setattr(layout, "consolidate", killed)
    with pytest.raises(KeyboardInterrupt):
        add_window(store_copy, "ircadb-01", window, 2) if adding else remove_window(store_copy, "ircadb-01", "narrow")
    monkeypatch.undo()
    if adding:
        assert add_window(store_copy, "ircadb-01", window, 2) == 0
    else:
        assert not remove_window(store_copy, "ircadb-01", "narrow")
    case = open_store(store_copy)["ircadb-01"]
    assert ("narrow" in case.window_names) == ("windows/narrow" in consolidated(case)) == adding


def test_a_window_of_a_case_that_is_replaced_meanwhile_is_not_added(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish_case(store, content(), "balanced")
    apply = Window.apply

    def slow(window: Window, hu: np.ndarray) -> np.ndarray:
        publish_case(store, content(volume=scan((3, 4, 5), seed=9), digest="other"), "balanced", replace=True)
        return apply(window, hu)

    monkeypatch.setattr(Window, "apply", slow)
    with pytest.raises(StoreError, match="lits-000: was replaced while it was windowed"):
        add_window(store, "lits-000", WINDOW, 0)
    assert open_store(store)["lits-000"].window_names == []
    assert staging_entries(store) == []


def test_two_runs_that_add_different_windows_of_one_name(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish_case(store, content(), "balanced")
    apply, first = Window.apply, []

    def slow(window: Window, hu: np.ndarray) -> np.ndarray:
        if not first:
            first.append(True)
            add_window(store, "lits-000", Window(60, 140, "same"), 0)
        return apply(window, hu)

    monkeypatch.setattr(Window, "apply", slow)
    with pytest.raises(UsageError, match="window same is stored with WL 60 WW 140 HU"):
        add_window(store, "lits-000", Window(40, 220, "same"), 0)


# --- splits -----------------------------------------------------------------------------------------------------


def test_splits_are_recorded_and_read(store_copy: Path) -> None:
    opened = open_store(store_copy)
    assert (opened.split_names(), opened.read_split("default")) == ([], None)
    split = make_split({name: case.patient for name, case in opened.items()}, name="mine", seed=4)
    opened.write_split(split)
    opened.write_split(split)
    assert (opened.split_names(), opened.read_split("mine")) == (["mine"], split)
    shutil.rmtree(store_copy / "splits")
    assert opened.split_names() == []
    opened.write_split(split)
    assert opened.split_names() == ["mine"]


@pytest.mark.parametrize("name", ["", "..", "../../mine", "/tmp/mine", ".hidden", "a\nb"])
def test_split_names_are_plain_file_names(store_copy: Path, name: str) -> None:
    opened = open_store(store_copy)
    with pytest.raises(UsageError, match="expected a plain file name") as caught:
        opened.write_split(make_split({"a": "a"}, name=name))
    assert caught.value.code == "SPLIT_INVALID"
    assert opened.read_split(name) is None


def test_an_unusable_split_is_named(store_copy: Path) -> None:
    (store_copy / "splits" / "default.json").write_text('{"name": "default"}')
    with pytest.raises(StoreError, match="unusable split") as caught:
        open_store(store_copy).read_split("default")
    assert caught.value.code == "STORE_UNREADABLE"


# --- damage -----------------------------------------------------------------------------------------------------

ARRAYS = ["hu/scale0/image", "hu/labels/liver_tumor/image", "train/packed", "windows/wl40_ww220/scale0/image"]


def read_array(case: CaseStore, name: str) -> np.ndarray:
    if name.startswith("windows/"):
        return case.read_window(name.split("/")[1])
    return {"hu/s": case.read_hu, "hu/l": case.read_labels, "trai": case.read_packed}[name[:4]]()


@pytest.mark.parametrize("name", ARRAYS)
@pytest.mark.parametrize("profile", ["fast", "balanced", "small"])
def test_no_flipped_bit_is_ever_read(tmp_path: Path, name: str, profile: str) -> None:
    store = tmp_path / "s"
    create_store(store, NATIVE, profile, "digest")
    publish_case(store, content(), profile)
    add_window(store, "lits-000", WINDOW, 0)
    shard = store / "cases" / "lits-000" / name / "c" / "0" / "0" / "0"
    whole = shard.read_bytes()
    rng = np.random.default_rng(0)
    for offset in [0, len(whole) - 1, *rng.integers(0, len(whole), 25)]:
        flip_bit(shard, int(offset), int(rng.integers(8)))
        with pytest.raises(StoreError, match="cannot be decoded") as caught:
            read_array(open_store(store)["lits-000"], name)
        assert caught.value.code == "STORE_CORRUPT"
        shard.write_bytes(whole)
    read_array(open_store(store)["lits-000"], name)


@pytest.mark.parametrize("name", [*ARRAYS, "index/liver"])
@pytest.mark.parametrize("damage", ["deleted", "truncated", "zeroed", "metadata gone", "metadata odd", "manifest gone"])
def test_damaged_files_are_named_not_read_as_zeros(store_copy: Path, name: str, damage: str) -> None:
    case = open_store(store_copy)["ircadb-01"]
    (shard,) = (path for path in (case.path / name / "c").rglob("*") if path.is_file())
    if damage == "deleted":
        shard.unlink()
    elif damage == "truncated":
        shard.write_bytes(shard.read_bytes()[:-9])
    elif damage == "zeroed":
        shard.write_bytes(bytes(shard.stat().st_size))
    elif damage == "metadata gone":
        (case.path / name / "zarr.json").unlink()
    elif damage == "metadata odd":
        (case.path / name / "zarr.json").write_text('{"zarr_format": 3, "node_type": "array", "shape": "odd"}')
    else:
        component = "/".join(name.split("/")[: 2 if name.startswith("windows") else 1])
        (case.path / component / "manifest.json").unlink()
    with pytest.raises(StoreError, match="ircadb-01: ") as caught:
        case.class_points(Label.LIVER) if name.startswith("index") else read_array(case, name)
    assert caught.value.code == "STORE_CORRUPT"


def test_arrays_of_another_shape_or_type_are_refused_every_time(store_copy: Path) -> None:
    case = open_store(store_copy)["ircadb-01"]
    path = case.path / "hu/scale0/image/zarr.json"
    node = json.loads(path.read_text())
    node["shape"] = [1, 1, 1]
    path.write_text(json.dumps(node))
    object.__setattr__(case, "_manifest", lambda component: {"files": {}})
    for _ in range(2):
        with pytest.raises(StoreError, match=r"is int16 \(1, 1, 1\), expected int16") as caught:
            case.read_hu()
        assert caught.value.code == "STORE_CORRUPT"


def test_writing_json_fails_whole(tmp_path: Path) -> None:
    layout.write_json(tmp_path / "a.json", {"a": 1})
    with pytest.raises(ValueError, match="JSON"):
        layout.write_json(tmp_path / "a.json", {"a": float("nan")})
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


# --- geometry in the store --------------------------------------------------------------------------------------


def test_xarray_has_positions_in_mm(store: Path) -> None:
    grid = Geometry((5, 70, 66), (2.0, 0.8, 0.7), (-10.0, 20.0, 30.5))
    publish_case(store, content(volume=scan(geometry=grid)), "balanced")
    add_window(store, "lits-000", Window(60, 140), 1)
    add_window(store, "lits-000", Window(40, 220), 0)
    case = open_store(store)["lits-000"]
    dataset = case.to_xarray()
    assert dict(dataset.sizes) == {"z": 5, "y": 70, "x": 66, "channel": 2}
    np.testing.assert_allclose(dataset.x, -10 + 0.7 * np.arange(66))
    np.testing.assert_allclose(dataset.y, 20 + 0.8 * np.arange(70))
    np.testing.assert_allclose(dataset.z, 30.5 + 2.0 * np.arange(5))
    assert dataset.channel.values.tolist() == ["wl40_ww220", "wl60_ww140"]
    np.testing.assert_array_equal(dataset.windows, case.windows.apply(case.read_hu()))
    np.testing.assert_array_equal(dataset.label, case.read_labels())
    np.testing.assert_array_equal(dataset.hu.sel(z=32.5), case.read_hu()[1])
    assert dataset.attrs["orientation"] == "LPS"
