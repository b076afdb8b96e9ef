"""Read a store in an object storage: small files are kept here, of the volumes only the chunks that are asked for.

A volume's shard becomes a file of the same size that is empty but for its index; chunks are fetched into it when
they are first touched or announced, and from there everything is as with a store on disk, checksums too.
"""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import tempfile
import threading
import weakref
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr

from livprep.errors import StoreError
from livprep.splits import Split
from livprep.store import layout
from livprep.store.arrays import Region, VolumeArray, box_of
from livprep.store.bucket import Bucket, address_of
from livprep.store.case import CaseStore
from livprep.store.direct import Check
from livprep.store.reading import Store
from livprep.store.shard_format import read_shard_format

_TOP = ("zarr.json", f"{layout.CASES}/zarr.json")
_SHARD = "c/0/0/0"
_INDEX_ENTRY, _CRC_BYTES = 16, 4
_FETCHERS = 16
"""Requests under way at once: what an object storage lacks in latency it has in breadth."""


@contextlib.contextmanager
def fetched_case(path: Path, case_id: str, *, whole: bool) -> Iterator[Path]:
    """A folder that holds the files of one case as a store on disk would; see `case_files`."""
    bucket = Bucket(address_of(path))
    sizes = bucket.sizes(f"{layout.CASES}/{case_id}")
    holes = [] if whole else [key for key in sizes if key.endswith(f"/{_SHARD}")]
    with tempfile.TemporaryDirectory(prefix="livprep-objects-") as folder:
        bucket.mirror(sizes, Path(folder), empty=holes)
        yield Path(folder)


def _lay_out_names(sizes: Mapping[str, int], mirror: Path) -> None:
    """An empty folder for each case, and an empty file for what lies among them."""
    entries = [key.split("/")[1:] for key in sizes if key.startswith(f"{layout.CASES}/") and sizes[key]]
    (mirror / layout.CASES).mkdir()
    for folder in {entry[0] for entry in entries if len(entry) > 1}:
        (mirror / layout.CASES / folder).mkdir()
    for entry in entries:
        if len(entry) == 1:
            (mirror / layout.CASES / entry[0]).touch()


class RemoteStore(Store):
    """A cohort at s3://bucket/prefix as it was when it was opened."""

    def __init__(self, path: PurePath | str, check: Check = "first") -> None:
        address = address_of(path)
        self.bucket = Bucket(address)
        self.sizes = self.bucket.sizes()
        if "zarr.json" not in self.sizes:
            raise StoreError("STORE_MISSING", f"{address}: no such store")
        mirror = Path(tempfile.mkdtemp(prefix="livprep-objects-"))
        weakref.finalize(self, shutil.rmtree, mirror, ignore_errors=True)
        _lay_out_names(self.sizes, mirror)
        top = [key for key in self.sizes if key in _TOP or key.startswith(f"{layout.SPLITS}/")]
        self.bucket.download(top, mirror)
        self.fetchers = ThreadPoolExecutor(_FETCHERS, thread_name_prefix="livprep-fetch")
        weakref.finalize(self, self.fetchers.shutdown, wait=False, cancel_futures=True)
        self._lock, self.laying_out = threading.Lock(), threading.Lock()
        super().__init__(Path(path), check, mirror)

    @property
    def case_ids(self) -> list[str]:
        """Published cases, sorted: those whose own zarr.json is there, which is written last."""
        parts = (key.split("/") for key in self.sizes)
        return sorted(p[1] for p in parts if len(p) == 3 and p[0] == layout.CASES and p[2] == "zarr.json")

    def _open_case(self, case_id: str) -> CaseStore:
        return RemoteCase(self, case_id)

    def _is_published(self, case_id: str) -> bool:
        return f"{layout.CASES}/{case_id}/zarr.json" in self.sizes

    def fetch_case(self, case_id: str) -> None:
        """Have the small files of a case here."""
        target = layout.case_path(self.folder, case_id)
        with self._lock:
            if (target / "zarr.json").is_file():
                return
            own = f"{layout.CASES}/{case_id}/"
            wanted = [key for key in self.sizes if key.startswith(own) and not key.endswith(f"/{_SHARD}")]
            self.bucket.download([key for key in wanted if key != f"{own}zarr.json"], self.folder)
            self.bucket.download([f"{own}zarr.json"], self.folder)

    def write_split(self, split: Split) -> None:
        """Record a split under its name."""
        super().write_split(split)
        name = f"{layout.SPLITS}/{split.name}.json"
        self.bucket.put(name, self.folder / name)


class RemoteCase(CaseStore):
    """One case of a `RemoteStore`."""

    def __init__(self, remote: RemoteStore, case_id: str) -> None:
        remote.fetch_case(case_id)
        super().__init__(remote.folder, case_id, remote.check)
        self.remote = remote

    def __reduce__(self) -> tuple[Any, ...]:
        return (_reopened, (self.remote, self.case_id))

    def bytes_on_disk(self) -> int:
        """Size of all objects of the case."""
        own = f"{layout.CASES}/{self.case_id}/"
        return sum(size for key, size in self.remote.sizes.items() if key.startswith(own))

    def _size_of(self, path: Path) -> int | None:
        return self.remote.sizes.get(path.relative_to(self.remote.folder).as_posix())

    def _open_volume(self, folder: Path) -> VolumeArray:
        return RemoteVolume(self.remote, folder)

    def _array(self, name: str) -> zarr.Array[Any]:
        self._check_files(name)
        try:
            return _plain(self.remote, self.path / name)
        except Exception as error:  # zarr raises almost anything on damaged metadata
            raise StoreError("STORE_CORRUPT", f"{self.case_id}: array {name} cannot be opened") from error


def _reopened(remote: RemoteStore, case_id: str) -> CaseStore:
    return remote.case(case_id)


def _plain(remote: RemoteStore, folder: Path) -> zarr.Array[Any]:
    path = folder.relative_to(remote.folder).as_posix()
    return zarr.open_array(remote.bucket.zarr_store(), path=path, mode="r")


class RemoteVolume(VolumeArray):
    """A volume whose chunks are fetched when they are first needed."""

    def __init__(self, remote: RemoteStore, folder: Path) -> None:
        self._remote = remote
        self._file = folder / _SHARD
        self._key = self._file.relative_to(remote.folder).as_posix()
        self._under_way: dict[int, Future[None]] = {}
        self._lock = threading.Lock()
        form = read_shard_format(folder)
        if form is not None and self._key in remote.sizes:
            with remote.laying_out:  # two threads may open a volume at once; what one has mapped must stay the file
                if not self._file.exists():
                    self._lay_out(math.prod(form.grid_zyx) * _INDEX_ENTRY + _CRC_BYTES)
        super().__init__(folder)

    def _zarr(self) -> zarr.Array[Any]:
        if self._plain is None:
            self._plain = _plain(self._remote, self._file.parents[3])
        return self._plain

    def _lay_out(self, index_bytes: int) -> None:
        """A file as large as the shard that holds its index; it appears whole."""
        size = self._remote.sizes[self._key]
        if size < index_bytes:
            raise ValueError(f"the shard has {size} bytes, expected at least {index_bytes}")
        (index,) = self._remote.bucket.get_ranges(self._key, [size - index_bytes], [index_bytes])
        self._file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=self._file.parent, delete=False) as file:
            os.truncate(file.name, size)
            os.pwrite(file.fileno(), index, size - index_bytes)
        Path(file.name).replace(self._file)

    def read(self, region: Region, out: npt.NDArray[Any] | None, check: Check) -> npt.NDArray[Any]:
        """Read a region, fetching what is not here yet; OSError where the storage fails."""
        for future in self._ask(region):
            future.result()
        return super().read(region, out, check)

    def will_need(self, region: Region) -> None:
        """Have the chunks of a region fetched ahead of their use."""
        self._ask(region)

    def _ask(self, region: Region) -> set[Future[None]]:
        """Chunks of a region that are on their way or here, each asked for once; those that failed again."""
        box = box_of(region, self.shape)
        if self._direct is None or box is None:
            return set()
        wanted = self._direct.chunk_ranges(box)
        with self._lock:
            for chunk in [c for c, f in self._under_way.items() if f.done() and f.exception() is not None]:
                del self._under_way[chunk]
            new = {chunk: span for chunk, span in wanted.items() if chunk not in self._under_way}
            if new:
                future = self._remote.fetchers.submit(self._fetch, list(new.values()))
                self._under_way |= dict.fromkeys(new, future)
            return {self._under_way[chunk] for chunk in wanted}

    def _fetch(self, spans: Iterable[tuple[int, int]]) -> None:
        starts, lengths = (np.array(values).tolist() for values in zip(*spans, strict=True))
        parts = self._remote.bucket.get_ranges(self._key, starts, lengths)
        handle = os.open(self._file, os.O_WRONLY)
        try:
            for start, part in zip(starts, parts, strict=True):
                os.pwrite(handle, part, start)
        finally:
            os.close(handle)
