"""Write cases and windows: everything is staged beside the store's cases and appears by one rename."""

from __future__ import annotations

import hashlib
import importlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec

from livprep.errors import StoreError, UsageError
from livprep.geometry import Geometry, Triple
from livprep.labels import UNLABELLED, Label, LabelArray, label_counts, voxels_at
from livprep.prepare import Preparation
from livprep.provenance import package_version
from livprep.schema import (
    INDEX_POINTS,
    PACKED_HIGH_HU,
    PACKED_LOW_HU,
    PROFILES,
    SCHEMA_VERSION,
    CaseMeta,
    Profile,
    ProfileName,
    StoreMeta,
    WindowMeta,
)
from livprep.store import layout, ome
from livprep.store.bucket import is_remote
from livprep.store.checking import case_folders
from livprep.store.nearby import near_points
from livprep.store.reading import CaseStore, open_store
from livprep.store.shards import Part, Region, write_shard
from livprep.volume import LabelledVolume
from livprep.windows import FUNCTION, Window


@dataclass(frozen=True, eq=False)
class CaseContent:
    """A prepared case and its attributes, ready to be written."""

    meta: CaseMeta
    volume: LabelledVolume


def pack(hu: npt.NDArray[np.int16], labels: LabelArray | None) -> npt.NDArray[np.uint16]:
    """Pack `(z, y, x)` HU and labels: 12 bits of clip(HU, -1024, 3071) + 1024, 4 bits of label above them.

    Label 15 stands for an unlabelled case.
    """
    shifted = np.clip(hu, PACKED_LOW_HU, PACKED_HIGH_HU)
    shifted -= np.int16(PACKED_LOW_HU)
    packed = shifted.view(np.uint16)
    if labels is None:
        packed |= np.uint16(UNLABELLED << 12)
    else:
        packed |= np.left_shift(labels, 12, dtype=np.uint16)
    return packed


def create_store(path: Path, preparation: Preparation, profile: ProfileName, catalog_digest: str) -> None:
    """Create an empty store, or check that the one at `path` is prepared the same way.

    Raises
    ------
    StoreError
        STORE_PREPARATION: it exists with other settings; STORE_UNREADABLE: something else lies there.
    """
    if is_remote(path):
        remote_writing().create(path, preparation, profile, catalog_digest)
    elif path.exists() and not path.is_dir():
        raise StoreError("STORE_UNREADABLE", f"{path}: is a file, expected a store or a new folder")
    elif not path.exists() or _is_unfinished(path):
        path.mkdir(parents=True, exist_ok=True)
        with layout.locked(path, "store"):
            if not (path / "zarr.json").exists():
                for folder in (layout.CASES, layout.SPLITS, layout.JOURNAL):
                    (path / folder).mkdir(exist_ok=True)
                layout.write_json(path / layout.CASES / "zarr.json", layout.plain_group({}))
                write_root(path, preparation, profile, catalog_digest)
    store = open_store(path)
    if (store.preparation, store.meta.profile) != (preparation, profile):
        raise StoreError(
            "STORE_PREPARATION",
            f"{path}: prepared with {store.preparation}, profile {store.meta.profile}; "
            f"asked for {preparation}, profile {profile}",
        )


def remote_writing() -> ModuleType:
    """What writes to object storages, which needs what stands here."""
    return importlib.import_module("livprep.store.remote_writing")


def _is_unfinished(path: Path) -> bool:
    """Whether a folder is empty, or holds what a creation leaves that was killed before its last step."""
    names = {entry.name for entry in path.iterdir() if not entry.name.startswith(".zarr.json.")}
    return not names or layout.STAGING in names <= {layout.STAGING, layout.CASES, layout.SPLITS, layout.JOURNAL}


def write_root(path: Path, preparation: Preparation, profile: ProfileName, catalog_digest: str) -> None:
    """Write the attributes of a new store into a folder; the folder is not yet published."""
    meta = StoreMeta(
        schema_version=SCHEMA_VERSION,
        created_with=f"livprep {package_version()}",
        catalog_digest=catalog_digest,
        preparation=preparation.as_dict(),
        profile=profile,
    )
    layout.write_json(path / "zarr.json", layout.plain_group(layout.own_attributes(meta.model_dump(mode="json"))))


def change_preparation(path: Path, preparation: Preparation, profile: ProfileName, catalog_digest: str) -> None:
    """Remove all cases of a store and set another preparation and profile; splits and journal stay.

    Which channels each case had is kept beside the staged work, and the next publication of the case makes them
    anew. Killed in between it leaves a store of the old preparation with fewer cases.

    Raises
    ------
    UsageError
        USAGE: it lies in an object storage.
    """
    if is_remote(path):
        raise UsageError("USAGE", f"{path}: prepared otherwise, which is not changed in an object storage; use another")
    for case_id, case in open_store(path).items():
        with layout.locked(path, case_id):
            _keep_channels(path, case_id, stored_channels(case.path))
            layout.withdraw(path, case.path)
    write_root(path, preparation, profile, catalog_digest)


def stored_channels(case: Path) -> list[WindowMeta]:
    """Channels of a case that is about to be replaced; without those that are too damaged to tell what they are."""
    found = []
    for folder in sorted((case / layout.WINDOWS).glob("*/")):
        try:
            found.append(WindowMeta.model_validate(layout.read_attributes(folder)))
        except (StoreError, ValueError):
            continue
    return found


def _keep_channels(store: Path, case_id: str, channels: Sequence[WindowMeta]) -> None:
    """Write down the channels of a case that may be out of sight if this process is killed now."""
    if channels:
        layout.write_json(layout.channels_path(store, case_id), [meta.model_dump(mode="json") for meta in channels])


def channels_of(store: Path, case_id: str) -> list[WindowMeta]:
    """Channels that a case must have when it is published: those it has, or had before the preparation changed."""
    case = open_store(store).get(case_id)
    folder = layout.case_path(store, case_id) if case is None else case.path
    if folder.is_dir():
        return stored_channels(folder)
    if is_remote(store):
        return []
    try:
        kept = json.loads(layout.channels_path(store, case_id).read_text(encoding="utf-8"))
        return [WindowMeta.model_validate(entry) for entry in kept]
    except (OSError, ValueError, TypeError):
        return []


def _make_group(folder: Path, attributes: dict[str, Any] | None = None) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    layout.write_json(folder / "zarr.json", layout.plain_group(attributes or {}))


def publish_case(store: Path, content: CaseContent, profile: ProfileName, *, replace: bool = False) -> int:
    """Write a case whole and make it visible by one rename.

    Parameters
    ----------
    store
        Root of an existing store.
    content
        The prepared case.
    profile
        Codec profile of the volumes.
    replace
        Take the place of an already published case of that id; its channels are made anew of the new HU.

    Returns
    -------
    Bytes on disk; 0 where another writer published the case first (its copy stays).
    """
    name = content.meta.case
    if is_remote(store):
        return int(remote_writing().publish_case(store, content, profile, replace=replace))
    with layout.staged(store, name) as folder:
        write_case(folder, content, PROFILES[profile])
        write_channels(folder, content, channels_of(store, name), PROFILES[profile])
        with layout.locked(store, name):
            # A channel that was added or removed meanwhile is so in the new case too.
            channels = channels_of(store, name)
            write_channels(folder, content, channels, PROFILES[profile])
            size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
            target = layout.case_path(store, name)
            # What readers skip because its metadata are gone is nobody's copy: it would stay in the way for ever.
            replace = replace or not (target / "zarr.json").is_file()
            if replace:
                _keep_channels(store, name, channels)
            put = layout.replace_published(store, folder, target) if replace else layout.publish(folder, target)
            layout.channels_path(store, name).unlink(missing_ok=True)
            return size if put else 0


def write_channels(folder: Path, content: CaseContent, channels: Sequence[WindowMeta], profile: Profile) -> None:
    """Bring the channels of a staged case to exactly the given ones; published with the case by its one rename."""
    there = {path.name for path in (folder / layout.WINDOWS).glob("*/")}
    image = content.volume.image
    for name in there - {meta.name for meta in channels}:
        shutil.rmtree(folder / layout.WINDOWS / name)
    for meta in channels:
        if meta.name not in there:
            channel = meta.channel()
            values, meta = channel.apply(image.hu), WindowMeta.of(channel, meta.order, image.hu)
            target = folder / layout.WINDOWS / meta.name
            write_channel(target, values, image.geometry, meta, content.meta.source.digest, profile)
    layout.consolidate(folder)


def write_channel(
    folder: Path,
    values: npt.NDArray[np.uint8],
    grid: Geometry,
    meta: WindowMeta,
    source_digest: str,
    profile: Profile,
) -> None:
    """One channel whole, with its manifest."""
    shown = ome.image_attributes(meta.name, grid, (0, 255), (0, 255))
    attributes = {"ome": shown, "livprep": meta.model_dump(mode="json")}
    hashes = _write_image(folder, values, grid, profile, attributes)
    layout.write_manifest(folder, {"source_digest": source_digest}, hashes)


def write_case(folder: Path, content: CaseContent, profile: Profile) -> None:
    """Write all arrays of a case but its channels into a staged folder."""
    image, labels = content.volume.image, content.volume.label_map
    grid = image.geometry
    label_values = None if labels is None else labels.labels
    digests = {"source_digest": content.meta.source.digest, "settings_digest": content.meta.settings_digest}

    limits = (float(content.meta.hu_min), float(content.meta.hu_max))
    shown = ome.image_attributes("HU", grid, limits, (-160, 240))
    hashes = _write_image(folder / layout.HU, image.hu, grid, profile, {"ome": shown})
    if label_values is not None:
        _make_group(folder / layout.HU / "labels", {"ome": {"version": "0.5", "labels": ["liver_tumor"]}})
        flags = {
            "flag_values": [int(label) for label in Label],
            "flag_meanings": " ".join(label.name.lower() for label in Label),
        }
        hashes |= _write_image(
            folder / layout.HU / layout.LABELS,
            label_values,
            grid,
            profile,
            {"ome": ome.label_attributes(grid)},
            path=layout.LABEL_IMAGE,
            array_attributes=flags,
        )
        layout.consolidate(folder / layout.HU)
    layout.write_manifest(folder / layout.HU, digests, hashes)

    def packed(region: Region) -> npt.NDArray[np.uint16]:
        return pack(image.hu[region], None if label_values is None else label_values[region])

    _make_group(folder / layout.TRAIN)
    hashes = _write_array(folder / layout.TRAIN / "packed", grid.shape_zyx, np.uint16, packed, profile)
    layout.consolidate(folder / layout.TRAIN)
    layout.write_manifest(folder / layout.TRAIN, digests, hashes)

    _write_index(folder / layout.INDEX, content.meta.case, label_values, content.meta.label_voxels, grid.spacing_mm)
    layout.write_manifest(folder / layout.INDEX, digests)

    _make_group(folder / layout.WINDOWS)
    layout.write_json(
        folder / "zarr.json", layout.plain_group(layout.own_attributes(content.meta.model_dump(mode="json")))
    )


def _write_image(
    folder: Path,
    values: npt.NDArray[Any],
    grid: Geometry,
    profile: Profile,
    attributes: dict[str, Any],
    *,
    path: str = layout.IMAGE,
    array_attributes: dict[str, Any] | None = None,
) -> layout.Hashes:
    """An OME image of one level: the array, and the positions along its axes beside it for xarray."""
    _make_group(folder, attributes)
    level = (folder / path).parent
    if level != folder:
        _make_group(level)
    hashes = _write_array(folder / path, grid.shape_zyx, values.dtype, values.__getitem__, profile, array_attributes)
    for axis, positions in ome.axis_coordinates(grid).items():
        array = zarr.create_array(
            store=level / axis,
            shape=positions.shape,
            dtype=positions.dtype,
            chunks=positions.shape,
            compressors=[Crc32cCodec()],
            fill_value=0.0,
            dimension_names=[axis],
            attributes={"units": "mm", "long_name": f"{axis} position (LPS)"},
        )
        array[...] = positions
    layout.consolidate(level)
    layout.consolidate(folder)
    return hashes


def _write_array(
    path: Path,
    shape_zyx: tuple[int, int, int],
    dtype: npt.DTypeLike,
    part: Part,
    profile: Profile,
    attributes: dict[str, Any] | None = None,
) -> layout.Hashes:
    """One array in one shard; inner chunks end in crc32c, so that a flipped bit cannot pass.

    Returns the shard's size and hash, for the manifest.
    """
    kind = np.dtype(dtype)
    blosc = BloscCodec(
        typesize=kind.itemsize,
        cname=profile.codec or "lz4",  # type: ignore[arg-type]
        clevel=profile.level,
        shuffle="shuffle" if kind.itemsize > 1 else "noshuffle",
        blocksize=profile.block_bytes,
    )
    shard = tuple(-(-size // inner) * inner for size, inner in zip(shape_zyx, profile.inner_zyx, strict=True))
    zarr.create_array(
        store=path,
        shape=shape_zyx,
        dtype=kind,
        chunks=profile.inner_zyx,
        shards=shard,
        compressors=[Crc32cCodec()] if profile.codec is None else [blosc, Crc32cCodec()],
        filters=None,
        fill_value=0,
        dimension_names=list(ome.AXES),
        attributes=attributes or {},
    )
    file = path / "c/0/0/0"
    facts = write_shard(file, shape_zyx, part, profile)
    return {} if facts is None else {file: facts}


def _write_index(
    folder: Path, case_id: str, labels: LabelArray | None, counts: dict[str, int] | None, spacing_mm: Triple
) -> None:
    """Sampling index: up to `INDEX_POINTS` voxels of each class and of the liver's surroundings, and the counts."""
    _make_group(folder, {"livprep": {"counts": counts, "points": INDEX_POINTS}})
    if labels is None:
        return
    samples = {label.name.lower(): index_points(case_id, labels, label) for label in Label}
    samples[layout.NEAR] = near_points(case_id, labels, spacing_mm)
    for name, points in samples.items():
        array = zarr.create_array(
            store=folder / name,
            shape=points.shape,
            dtype=points.dtype,
            chunks=(max(1, len(points)), 3),
            compressors=[Crc32cCodec()],  # 24 kB at most, and read in a tenth of the time (points.py)
            fill_value=0,
            dimension_names=[f"{name}_point", "axis_zyx"],
        )
        if len(points):
            array[...] = points
    layout.consolidate(folder)


def index_points(case_id: str, labels: LabelArray, label: Label) -> npt.NDArray[np.int16]:
    """Coordinates `(n, 3)` (z, y, x) that the sampling index of a case holds of a label."""
    seed = int.from_bytes(hashlib.sha256(case_id.encode()).digest()[:8], "little")
    total = label_counts(labels)[label.name.lower()]
    return _sample_points(labels, label, total, np.random.default_rng([seed, int(label)]))


def _sample_points(labels: LabelArray, label: Label, total: int, rng: np.random.Generator) -> npt.NDArray[np.int16]:
    """Coordinates `(n, 3)` of up to `INDEX_POINTS` voxels of a label, uniform without replacement, in array order."""
    if total > INDEX_POINTS:
        ranks = np.sort(rng.choice(total, INDEX_POINTS, replace=False, shuffle=False))
    else:
        ranks = np.arange(total)
    return voxels_at(labels, label, ranks)


def add_window(store: Path, case_id: str, window: Window, order: int) -> int:
    """Add one windowed channel, derived from the stored HU, to a published case.

    Returns
    -------
    Bytes written; 0 where the same window is there already.

    Raises
    ------
    UsageError
        STORE_WINDOW_EXISTS: the name is taken by a window with other settings.
    """
    if is_remote(store):
        return int(remote_writing().add_window(store, case_id, window, order))
    case = open_store(store)[case_id]
    check_free(case, window)
    if window.name in case.window_names:
        with layout.locked(store, case_id):
            layout.consolidate(case.path)  # an earlier run may have been killed before this step
        return 0
    hu = case.read_hu()
    values, meta = window.apply(hu), WindowMeta.of(window, order, hu)
    del hu
    profile = PROFILES[open_store(store).meta.profile]
    with layout.staged(store, f"{case_id}.{window.name}") as folder:
        write_channel(folder, values, case.geometry, meta, case.meta.source.digest, profile)
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        with layout.locked(store, case_id):
            if open_store(store).case(case_id).meta != case.meta:
                raise StoreError("STORE_CASE_UNKNOWN", f"{case_id}: was replaced while it was windowed")
            published = layout.publish(folder, case.path / layout.WINDOWS / window.name)
            layout.consolidate(case.path)
    if not published:
        check_free(open_store(store)[case_id], window)
    return size if published else 0


def check_free(case: CaseStore, window: Window) -> None:
    """Refuse a channel whose name another window of the case has: STORE_WINDOW_EXISTS."""
    for stored in case.windows:
        if stored.name == window.name and stored != window:
            raise UsageError("STORE_WINDOW_EXISTS", f"{case.case_id}: {taken(stored)}")


def taken(stored: Window) -> str:
    """What a name already stands for, for STORE_WINDOW_EXISTS."""
    how = "" if stored.function == FUNCTION else f", {stored.function} {stored.parameters}"
    return f"window {stored.name} is stored with WL {stored.center_hu:g} WW {stored.width_hu:g} HU{how}"


def remove_window(store: Path, case_id: str, name: str) -> bool:
    """Remove a windowed channel; False where the case has none of that name."""
    if is_remote(store):
        return bool(remote_writing().remove_window(store, case_id, name))
    case = open_store(store)[case_id]
    with layout.locked(store, case_id):
        found = name in case.window_names
        if found:
            layout.withdraw(store, case.path / layout.WINDOWS / name)
        layout.consolidate(case.path)  # an earlier run may have been killed before this step
    return found


def remove_case(store: Path, case_id: str) -> None:
    """Remove a case and all its channels, also one that readers skip because its metadata are gone.

    Raises
    ------
    KeyError
        There is none of that id.
    """
    if case_id not in case_folders(open_store(store)):
        raise KeyError(case_id)
    if is_remote(store):
        remote_writing().remove_case(store, case_id)
        return
    with layout.locked(store, case_id):
        layout.channels_path(store, case_id).unlink(missing_ok=True)
        layout.withdraw(store, layout.case_path(store, case_id))


def remove_staging(store: Path) -> list[str]:
    """Delete what killed runs left behind and return the names; in an object storage nothing is staged."""
    entries = layout.staging_entries(store)
    for entry in entries:
        if entry.is_dir():
            layout.discard(entry)
        else:
            entry.unlink(missing_ok=True)
    return [entry.name for entry in entries]
