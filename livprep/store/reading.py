"""Read a store: cases as a mapping."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from pydantic import ValidationError

from livprep.errors import StoreError, UsageError
from livprep.prepare import Preparation
from livprep.provenance import digest_of
from livprep.schema import StoreMeta
from livprep.splits import Split
from livprep.store import layout, versions
from livprep.store.bucket import is_remote
from livprep.store.case import CaseStore
from livprep.store.chunk_cache import ChunkCache
from livprep.store.direct import Check

__all__ = ["CaseStore", "Store", "case_files", "is_store", "open_store"]


def is_store(path: Path) -> bool:
    """Whether a livprep store lies at `path`."""
    try:
        open_store(path) if is_remote(path) else layout.read_attributes(path)
    except StoreError:
        return False
    return True


def open_store(path: Path | str, check: Check = "first") -> Store:
    """Open a store for reading.

    Parameters
    ----------
    path
        Its root; s3://bucket/prefix in an object storage.
    check
        When the crc32c of a chunk is computed; see `CaseStore`.

    Raises
    ------
    StoreError
        STORE_MISSING, STORE_UNREADABLE or STORE_NEWER.
    """
    if is_remote(path):
        from livprep.store.remote import RemoteStore

        return RemoteStore(path, check)
    return Store(Path(path), check)


@contextmanager
def case_files(store: Path, case_id: str, *, whole: bool) -> Iterator[CaseStore]:
    """A case, in any state, whose files lie on a disk: its own, or fetched from an object storage for a while.

    Unless it is to be `whole`, the volumes of a fetched case have their sizes and nothing in them.
    """
    if is_remote(store):
        from livprep.store.remote import fetched_case

        with fetched_case(store, case_id, whole=whole) as folder:
            yield CaseStore(folder, case_id)
    else:
        yield CaseStore(store, case_id)


class Store(Mapping[str, "CaseStore"]):
    """A cohort: case id -> `CaseStore`, sorted by id; only published cases are seen.

    Parameters
    ----------
    path
        Its root, by which it is opened again elsewhere.
    check
        See `CaseStore`.
    folder
        Where its metadata lie, if not there.
    """

    def __init__(self, path: Path, check: Check = "first", folder: Path | None = None) -> None:
        self.path = path
        self.folder = folder or path
        self.check: Check = check
        self._cache: ChunkCache | None = None
        if not self.folder.exists():
            raise StoreError("STORE_MISSING", f"{path}: no such store")
        data = layout.read_attributes(self.folder)
        data = versions.current_root(path, data)
        try:
            self.meta = StoreMeta.model_validate(data)
            self.preparation = Preparation.from_dict(self.meta.preparation)
        except (ValidationError, KeyError, TypeError, ValueError) as error:
            raise StoreError("STORE_UNREADABLE", f"{path}: unusable store attributes") from error

    def __reduce__(self) -> tuple[type[Store], tuple[Path, Check]]:
        return (type(self), (self.path, self.check))

    def use_cache(self, cache: ChunkCache | None) -> None:
        """Keep decoded chunks of the cases opened from now on in `cache`; None for no cache."""
        self._cache = cache

    @property
    def case_ids(self) -> list[str]:
        """Published cases, sorted."""
        cases = self.folder / layout.CASES
        if not cases.is_dir():
            raise StoreError("STORE_UNREADABLE", f"{self.path}: its folder {layout.CASES} is missing")
        return sorted(path.name for path in cases.iterdir() if (path / "zarr.json").is_file())

    def __getitem__(self, case_id: str) -> CaseStore:
        # A name with a path in it would reach other folders, also for removal.
        if not layout.is_plain(case_id) or not self._is_published(case_id):
            raise KeyError(case_id)
        case = self._open_case(case_id)
        case.use_cache(self._cache)
        return case

    def _is_published(self, case_id: str) -> bool:
        return (layout.case_path(self.folder, case_id) / "zarr.json").is_file()

    def _open_case(self, case_id: str) -> CaseStore:
        return CaseStore(self.path, case_id, self.check)

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
        folder = self.folder / layout.SPLITS
        return sorted(path.stem for path in folder.glob("*.json")) if folder.is_dir() else []

    def read_split(self, name: str) -> Split | None:
        """A recorded split, or None.

        Raises
        ------
        StoreError
            STORE_UNREADABLE: its file is no split; STORE_SPLIT: it was changed since it was recorded.
        """
        path = self.folder / layout.SPLITS / f"{name}.json"
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
        folder = self.folder / layout.SPLITS
        folder.mkdir(exist_ok=True)
        data = split.model_dump(mode="json")
        layout.write_json(folder / f"{split.name}.json", {**data, "digest": digest_of(data)})
