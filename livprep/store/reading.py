"""Read a store: cases as a mapping, arrays lazily and by region."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import zarr
from pydantic import ValidationError

from livprep.errors import StoreError, UsageError
from livprep.geometry import Geometry
from livprep.labels import Label, LabelArray
from livprep.prepare import Preparation
from livprep.provenance import digest_of
from livprep.schema import CaseMeta, StoreMeta, WindowMeta
from livprep.splits import Split
from livprep.store import layout, versions
from livprep.windows import Window, WindowBank

if TYPE_CHECKING:
    import xarray

Region = tuple[slice, slice, slice]
WHOLE: Region = (slice(None), slice(None), slice(None))


def is_store(path: Path) -> bool:
    """Whether a livprep store lies at `path`."""
    try:
        layout.read_attributes(path)
    except StoreError:
        return False
    return True


def open_store(path: Path | str) -> Store:
    """Open a store for reading.

    Raises
    ------
    StoreError
        STORE_MISSING, STORE_UNREADABLE or STORE_NEWER.
    """
    return Store(Path(path))


class Store(Mapping[str, "CaseStore"]):
    """A cohort: case id -> `CaseStore`, sorted by id; only published cases are seen."""

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.exists():
            raise StoreError("STORE_MISSING", f"{path}: no such store")
        data = layout.read_attributes(path)
        data = versions.current_root(path, data)
        try:
            self.meta = StoreMeta.model_validate(data)
            self.preparation = Preparation.from_dict(self.meta.preparation)
        except (ValidationError, KeyError, TypeError, ValueError) as error:
            raise StoreError("STORE_UNREADABLE", f"{path}: unusable store attributes") from error

    def __reduce__(self) -> tuple[type[Store], tuple[Path]]:
        return (type(self), (self.path,))

    @property
    def case_ids(self) -> list[str]:
        """Published cases, sorted."""
        cases = self.path / layout.CASES
        if not cases.is_dir():
            raise StoreError("STORE_UNREADABLE", f"{self.path}: its folder {layout.CASES} is missing")
        return sorted(path.name for path in cases.iterdir() if (path / "zarr.json").is_file())

    def __getitem__(self, case_id: str) -> CaseStore:
        # A name with a path in it would reach other folders, also for removal.
        if not layout.is_plain(case_id) or not (layout.case_path(self.path, case_id) / "zarr.json").is_file():
            raise KeyError(case_id)
        return CaseStore(self.path, case_id)

    def __iter__(self) -> Iterator[str]:
        return iter(self.case_ids)

    def __len__(self) -> int:
        return len(self.case_ids)

    def case(self, case_id: str) -> CaseStore:
        """Return a case, or raise StoreError STORE_CASE_UNKNOWN."""
        try:
            return self[case_id]
        except KeyError:
            raise StoreError("STORE_CASE_UNKNOWN", f"{self.path}: has no case {case_id}; see `livprep info`") from None

    def split_names(self) -> list[str]:
        """Names of the recorded splits."""
        folder = self.path / layout.SPLITS
        return sorted(path.stem for path in folder.glob("*.json")) if folder.is_dir() else []

    def read_split(self, name: str) -> Split | None:
        """A recorded split, or None.

        Raises
        ------
        StoreError
            STORE_UNREADABLE: its file is no split; STORE_SPLIT: it was changed since it was recorded.
        """
        path = self.path / layout.SPLITS / f"{name}.json"
        if not layout.is_plain(name) or not path.is_file():
            return None
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            digest = data.pop("digest", None)
            split = Split.model_validate(data)
            damaged = digest is not None and digest != digest_of(data)
        except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
            raise StoreError("STORE_UNREADABLE", f"{path}: unusable split") from error
        if damaged:
            raise StoreError(
                "STORE_SPLIT", f"{path}: was changed after it was recorded; expected what `livprep split` wrote"
            )
        return split

    def write_split(self, split: Split) -> None:
        """Record a split under its name; UsageError SPLIT_INVALID where that is no file name."""
        if not layout.is_plain(split.name):
            raise UsageError("SPLIT_INVALID", f"split name {split.name!r}: expected a plain file name")
        folder = self.path / layout.SPLITS
        folder.mkdir(exist_ok=True)
        data = split.model_dump(mode="json")
        layout.write_json(folder / f"{split.name}.json", {**data, "digest": digest_of(data)})


class CaseStore:
    """One published case; arrays are opened when first read. Pickles as a path.

    Regions are `(z, y, x)` slices inside the volume.
    """

    def __init__(self, store: Path, case_id: str) -> None:
        self.store = store
        self.case_id = case_id
        self.path = layout.case_path(store, case_id)

    def __reduce__(self) -> tuple[type[CaseStore], tuple[Path, str]]:
        return (type(self), (self.store, self.case_id))

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
        return WindowBank(tuple(Window(meta.wl, meta.ww, meta.name) for meta in self.window_metas))

    def read_hu(self, region: Region | None = None) -> npt.NDArray[np.int16]:
        """HU `(z, y, x)` int16."""
        values: npt.NDArray[np.int16] = self._read(f"{layout.HU}/{layout.IMAGE}", region, np.int16)
        return values

    def read_labels(self, region: Region | None = None) -> LabelArray:
        """Labels `(z, y, x)` uint8; StoreError where the case has none."""
        if not self.has_labels:
            raise StoreError("STORE_CASE_UNKNOWN", f"{self.case_id}: has no labels")
        values: LabelArray = self._read(f"{layout.HU}/{layout.LABELS}/{layout.LABEL_IMAGE}", region, np.uint8)
        return values

    def read_window(self, name: str, region: Region | None = None) -> npt.NDArray[np.uint8]:
        """A stored channel `(z, y, x)` uint8."""
        values: npt.NDArray[np.uint8] = self._read(f"{layout.WINDOWS}/{name}/{layout.IMAGE}", region, np.uint8)
        return values

    def read_packed(self, region: Region | None = None) -> npt.NDArray[np.uint16]:
        """HU and label packed into uint16 `(z, y, x)`; see `livprep.store.pack`."""
        values: npt.NDArray[np.uint16] = self._read(f"{layout.TRAIN}/packed", region, np.uint16)
        return values

    def class_points(self, label: Label) -> npt.NDArray[np.int32]:
        """Up to 4096 voxel coordinates `(n, 3)` (z, y, x) drawn uniformly from the voxels of exactly that label."""
        if not self.has_labels:
            return np.empty((0, 3), dtype=np.int32)
        name = f"{layout.INDEX}/{label.name.lower()}"
        return np.asarray(self._decode(self._array(name), name, ...), dtype=np.int32).reshape(-1, 3)

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
        try:
            array = zarr.open_array(self.path / name, mode="r")
        except Exception as error:  # zarr raises almost anything on damaged metadata
            raise StoreError("STORE_CORRUPT", f"{self.case_id}: array {name} cannot be opened") from error
        # A missing shard would read as zeros; the manifest knows which ones were written.
        depth = 2 if name.startswith(f"{layout.WINDOWS}/") else 1
        component = "/".join(name.split("/")[:depth])
        for file, facts in self._manifest(component)["files"].items():
            path = self.path / component / file
            if path.is_relative_to(self.path / name) and not (path.is_file() and path.stat().st_size == facts["size"]):
                raise StoreError("STORE_CORRUPT", f"{self.case_id}: {component}/{file} is missing or of another size")
        return array

    @cached_property
    def _opened(self) -> dict[str, zarr.Array[Any]]:
        return {}

    def _read(self, name: str, region: Region | None, dtype: type[np.generic]) -> npt.NDArray[Any]:
        array = self._opened.get(name)
        if array is None:
            array = self._array(name)
            if array.shape != self.shape_zyx or array.dtype != dtype:
                raise StoreError(
                    "STORE_CORRUPT",
                    f"{self.case_id}: {name} is {array.dtype} {array.shape}, "
                    f"expected {dtype.__name__} {self.shape_zyx}",
                )
            self._opened[name] = array
        return self._decode(array, name, WHOLE if region is None else region)

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
