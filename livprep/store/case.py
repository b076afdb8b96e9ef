"""One case of a store: its attributes, and its arrays by region."""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import zarr
from pydantic import ValidationError

from livprep.errors import StoreError
from livprep.geometry import Geometry
from livprep.labels import Label, LabelArray
from livprep.schema import CaseMeta, WindowMeta
from livprep.store import layout, versions
from livprep.store.arrays import WHOLE, Region, VolumeArray, box_of, box_shape
from livprep.store.chunk_cache import ChunkCache
from livprep.store.direct import Check
from livprep.store.points import read_points
from livprep.windows import WindowBank

if TYPE_CHECKING:
    import xarray

_PACKED = f"{layout.TRAIN}/packed"


class CaseStore:
    """One published case; arrays are opened when first read. Pickles as a path. Several threads may read it.

    Regions are `(z, y, x)` slices inside the volume. `out` is an array of the region's shape and of the stored type,
    which is filled in place and returned: a fresh one costs more than reading into one that is used again.

    Parameters
    ----------
    store
        Root of the store.
    case_id
        Name of the case.
    check
        When the crc32c of a chunk is computed: `always` it is read, when it is `first` read through this object,
        `never`. What zarr-python reads is always checked.
    """

    def __init__(self, store: Path, case_id: str, check: Check = "first") -> None:
        self.store = store
        self.case_id = case_id
        self.check: Check = check
        self.path = layout.case_path(store, case_id)
        self._cache: ChunkCache | None = None
        self._opened: dict[str, VolumeArray] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), (self.store, self.case_id, self.check))

    def __repr__(self) -> str:
        return f"CaseStore({str(self.store)!r}, {self.case_id!r})"

    @cached_property
    def meta(self) -> CaseMeta:
        """The case's attributes."""
        data = layout.read_attributes(self.path)
        data = versions.current_case(self.path, data)
        try:
            return CaseMeta.model_validate(data)
        except ValidationError as error:
            raise StoreError("STORE_UNREADABLE", f"{self.path}: unusable case attributes") from error

    @property
    def dataset(self) -> str:
        """`ircadb` or `lits`."""
        return self.meta.dataset

    @property
    def patient(self) -> str:
        """Patient of the catalogue; the same scan under two names has one patient."""
        return self.meta.patient

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the source's voxels; the same scan under two names has one."""
        return self.meta.fingerprint

    @cached_property
    def geometry(self) -> Geometry:
        """The stored grid (prepared, LPS)."""
        return Geometry.from_dict(self.meta.grid)

    @cached_property
    def source_geometry(self) -> Geometry:
        """The source's own grid, repaired."""
        return Geometry.from_dict(self.meta.source_grid)

    @property
    def shape_zyx(self) -> tuple[int, int, int]:
        """Voxels of the stored grid."""
        return self.geometry.shape_zyx

    @property
    def hu_min(self) -> int:
        """Lowest HU of the stored grid."""
        return self.meta.hu_min

    @property
    def hu_max(self) -> int:
        """Highest HU of the stored grid."""
        return self.meta.hu_max

    @property
    def has_labels(self) -> bool:
        """Whether the case has labels."""
        return self.meta.label_voxels is not None

    @property
    def label_counts(self) -> dict[str, int] | None:
        """Voxels of `background`, `liver` (label 1 alone) and `tumor`."""
        return self.meta.label_voxels

    @property
    def window_metas(self) -> list[WindowMeta]:
        """Attributes of the stored channels in channel order; read anew each time."""
        folder = self.path / layout.WINDOWS
        found = [
            WindowMeta.model_validate(layout.read_attributes(path))
            for path in folder.iterdir()
            if (path / "zarr.json").is_file()
        ]
        return sorted(found, key=lambda meta: (meta.order, meta.name))

    @property
    def window_names(self) -> list[str]:
        """Names of the stored channels in channel order."""
        return [meta.name for meta in self.window_metas]

    @property
    def windows(self) -> WindowBank:
        """The stored channels in channel order."""
        return WindowBank(tuple(meta.channel() for meta in self.window_metas))

    def read_hu(self, region: Region | None = None, out: npt.NDArray[np.int16] | None = None) -> npt.NDArray[np.int16]:
        """HU `(z, y, x)` int16."""
        return self._read(f"{layout.HU}/{layout.IMAGE}", region, np.int16, out)

    def read_labels(self, region: Region | None = None, out: LabelArray | None = None) -> LabelArray:
        """Labels `(z, y, x)` uint8; StoreError where the case has none."""
        if not self.has_labels:
            raise StoreError("STORE_CASE_UNKNOWN", f"{self.case_id}: has no labels")
        return self._read(f"{layout.HU}/{layout.LABELS}/{layout.LABEL_IMAGE}", region, np.uint8, out)

    def read_window(
        self, name: str, region: Region | None = None, out: npt.NDArray[np.uint8] | None = None
    ) -> npt.NDArray[np.uint8]:
        """A stored channel `(z, y, x)` uint8."""
        return self._read(f"{layout.WINDOWS}/{name}/{layout.IMAGE}", region, np.uint8, out)

    def read_packed(
        self,
        region: Region | None = None,
        out: npt.NDArray[np.uint16] | None = None,
        check: Check | None = None,
    ) -> npt.NDArray[np.uint16]:
        """HU and label packed into uint16 `(z, y, x)`; see `livprep.store.pack`. `check` overrules the case's own."""
        return self._read(_PACKED, region, np.uint16, out, check)

    def will_need_packed(self, region: Region | None = None) -> None:
        """Have the packed array's chunks that a region touches read from disk ahead of `read_packed`."""
        self._volume(_PACKED, np.uint16).will_need(WHOLE if region is None else region)

    def packed_bytes(self, region: Region | None = None) -> int:
        """Bytes on disk of the packed array's chunks that a region touches; of the whole file, unopened, for None."""
        if region is not None:
            found = self._volume(_PACKED, np.uint16).stored_bytes(region)
            if found is not None:
                return found
        return sum(facts["size"] for name, facts in self._manifest(layout.TRAIN)["files"].items() if "/c/" in name)

    def use_cache(self, cache: ChunkCache | None) -> None:
        """Keep decoded chunks in `cache` from now on; None for no cache."""
        self._cache = cache
        for volume in list(self._opened.values()):
            volume.use_cache(cache)

    def close(self) -> None:
        """Let go of the files, which the next reading opens again; readings under way in other threads end well."""
        self._opened = {}

    def class_points(self, label: Label) -> npt.NDArray[np.int32]:
        """Up to 4096 voxel coordinates `(n, 3)` (z, y, x) drawn uniformly from the voxels of exactly that label."""
        if not self.has_labels:
            return np.empty((0, 3), dtype=np.int32)
        return self._points(label.name.lower())

    def near_points(self) -> npt.NDArray[np.int32]:
        """Up to 4096 coordinates `(n, 3)` (z, y, x) drawn uniformly from the voxels near the liver and not in it.

        Near is within 20 mm (`livprep.store.NEAR_MM`). None in cases without liver, and in stores without them.
        """
        if not self.near_count:
            return np.empty((0, 3), dtype=np.int32)
        return self._points(layout.NEAR)

    @cached_property
    def near_count(self) -> int:
        """Number of `near_points`, without reading them."""
        try:
            node = json.loads((self.path / layout.INDEX / layout.NEAR / "zarr.json").read_text(encoding="utf-8"))
            return int(node["shape"][0])
        except FileNotFoundError:
            return 0
        except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
            raise StoreError("STORE_CORRUPT", f"{self.case_id}: array index/near cannot be opened") from error

    def _points(self, kind: str) -> npt.NDArray[np.int32]:
        name = f"{layout.INDEX}/{kind}"
        self._check_files(name)
        try:
            points = read_points(self.path / name)
        except (OSError, ValueError) as error:
            raise StoreError("STORE_CORRUPT", f"{self.case_id}: {name} cannot be decoded ({error})") from error
        if points is None:
            points = self._decode(self._array(name), name, ...)
        return np.asarray(points, dtype=np.int32).reshape(-1, 3)

    def class_count(self, label: Label) -> int:
        """Voxels of exactly that label."""
        return 0 if self.label_counts is None else self.label_counts[label.name.lower()]

    def read_array(self, name: str, limit: int) -> npt.NDArray[Any]:
        """Any small array of the case by its path, such as `hu/scale0/z`; StoreError beyond `limit` values."""
        array = self._array(name)
        if array.size > limit:
            raise StoreError("STORE_CORRUPT", f"{self.case_id}: {name} has {array.size} values, expected up to {limit}")
        return self._decode(array, name, ...)

    def _array(self, name: str) -> zarr.Array[Any]:
        self._check_files(name)
        try:
            return zarr.open_array(self.path / name, mode="r")
        except Exception as error:  # zarr raises almost anything on damaged metadata
            raise StoreError("STORE_CORRUPT", f"{self.case_id}: array {name} cannot be opened") from error

    def _check_files(self, name: str) -> None:
        """Refuse an array whose files are not those of its manifest; a missing shard would read as zeros."""
        depth = 2 if name.startswith(f"{layout.WINDOWS}/") else 1
        component = "/".join(name.split("/")[:depth])
        for file, facts in self._manifest(component)["files"].items():
            path = self.path / component / file
            if path.is_relative_to(self.path / name) and self._size_of(path) != facts["size"]:
                raise StoreError("STORE_CORRUPT", f"{self.case_id}: {component}/{file} is missing or of another size")

    def _size_of(self, path: Path) -> int | None:
        """Bytes of a file; None where there is none."""
        return path.stat().st_size if path.is_file() else None

    def _open_volume(self, folder: Path) -> VolumeArray:
        return VolumeArray(folder)

    def _volume(self, name: str, dtype: type[np.generic]) -> VolumeArray:
        """A volume of the case, opened once."""
        opened = self._opened
        volume = opened.get(name)
        if volume is None:
            self._check_files(name)
            try:
                volume = self._open_volume(self.path / name)
            except (OSError, ValueError) as error:
                raise StoreError("STORE_CORRUPT", f"{self.case_id}: {name} cannot be decoded ({error})") from error
            except Exception as error:  # zarr raises almost anything on damaged metadata
                raise StoreError("STORE_CORRUPT", f"{self.case_id}: array {name} cannot be opened") from error
            if volume.shape != self.shape_zyx or volume.dtype != dtype:
                raise StoreError(
                    "STORE_CORRUPT",
                    f"{self.case_id}: {name} is {volume.dtype} {volume.shape}, "
                    f"expected {dtype.__name__} {self.shape_zyx}",
                )
            volume.use_cache(self._cache)
            volume = opened.setdefault(name, volume)
        return volume

    def _read(
        self,
        name: str,
        region: Region | None,
        dtype: type[np.generic],
        out: npt.NDArray[Any] | None,
        check: Check | None = None,
    ) -> npt.NDArray[Any]:
        volume = self._volume(name, dtype)
        selection = WHOLE if region is None else region
        if out is not None:
            _check_target(out, selection, self.shape_zyx, dtype)
        try:
            return volume.read(selection, out, check or self.check)
        except (OSError, ValueError, RuntimeError) as error:
            raise StoreError("STORE_CORRUPT", f"{self.case_id}: {name} cannot be decoded ({error})") from error

    def _decode(self, array: zarr.Array[Any], name: str, selection: Any) -> npt.NDArray[Any]:
        try:
            return np.asarray(array[selection])
        except (OSError, ValueError, RuntimeError) as error:
            raise StoreError("STORE_CORRUPT", f"{self.case_id}: {name} cannot be decoded ({error})") from error

    def bytes_on_disk(self) -> int:
        """Size of all files of the case."""
        return sum(path.stat().st_size for path in self.path.rglob("*") if path.is_file())

    def manifests(self) -> dict[str, dict[str, Any]]:
        """Component -> its manifest: hu, train, index and each window."""
        components = [layout.HU, layout.TRAIN, layout.INDEX]
        components += [f"{layout.WINDOWS}/{name}" for name in self.window_names]
        return {name: self._manifest(name) for name in components}

    def _manifest(self, component: str) -> dict[str, Any]:
        try:
            manifest = json.loads((self.path / component / layout.MANIFEST).read_text(encoding="utf-8"))
            files = manifest["files"].items()
            facts = {str(name): {"size": int(f["size"]), "sha256": str(f["sha256"])} for name, f in files}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise StoreError("STORE_CORRUPT", f"{self.case_id}: {component} has no usable manifest") from error
        return {**manifest, "files": facts}

    def to_xarray(self) -> xarray.Dataset:
        """Lazy Dataset: `hu(z, y, x)`, `label(z, y, x)`, `windows(channel, z, y, x)`, coordinates in mm (LPS)."""
        from livprep.store.xarrays import case_dataset

        return case_dataset(self)


def _check_target(out: npt.NDArray[Any], region: Region, shape: tuple[int, int, int], dtype: type[np.generic]) -> None:
    """Refuse an array that cannot take a region: ValueError, for this is no fault of the store."""
    box = box_of(region, shape)
    wanted = None if box is None else box_shape(box)
    if out.dtype != dtype or wanted not in (None, out.shape) or not out.flags.writeable:
        raise ValueError(f"out is {out.dtype} {out.shape}, expected writable {np.dtype(dtype).name} {wanted}")
