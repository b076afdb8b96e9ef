"""Objects below a prefix of an object storage, at an address such as s3://bucket/prefix; the only user of obstore.

Credentials, region and endpoint come from the environment, as for other programs (AWS_ACCESS_KEY_ID, AWS_REGION,
AWS_ENDPOINT_URL, AWS_ALLOW_HTTP ...).
"""

from __future__ import annotations

import atexit
import errno
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from livprep.errors import StoreError

if TYPE_CHECKING:
    import zarr.storage

SCHEMES = ("s3",)
_THREADS = 16
_SETTINGS = "AWS_ENDPOINT_URL, AWS_REGION and credentials"


def is_remote(path: PurePath | str) -> bool:
    """Whether a store's path is the address of an object storage; `Path` makes s3:/bucket of s3://bucket."""
    first = PurePath(path).parts[:1]
    return bool(first) and first[0].removesuffix(":") in SCHEMES and first[0].endswith(":")


def address_of(path: PurePath | str) -> str:
    """`s3://bucket/prefix` of a path or text that says so; StoreError STORE_UNREADABLE without a bucket."""
    scheme, *rest = PurePath(path).parts
    if not rest:
        raise StoreError("STORE_UNREADABLE", f"{path}: names no bucket, expected s3://bucket/prefix")
    return f"{scheme}//{'/'.join(rest)}"


def place_of(path: Path) -> str:
    """A store's path as text that means the same in a process with another current folder."""
    return address_of(path) if is_remote(path) else str(path.absolute())


def journal_root(store: Path) -> Path:
    """Where a run's journal is written: in the store, or in a folder from which `keep_journal` brings it there."""
    if not is_remote(store):
        return store
    folder = Path(tempfile.mkdtemp(prefix="livprep-journal-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def keep_journal(store: Path, journal: Path) -> None:
    """Bring a journal to its store in an object storage, where nothing can be appended."""
    if is_remote(store) and journal.exists():
        Bucket(address_of(store)).put(f"journal/{journal.name}", journal)


class Bucket:
    """The objects below one address; keys are relative to it. Pickles as the address; threads may share it."""

    def __init__(self, address: str) -> None:
        import obstore.store

        self.address = address
        self._store: Any = obstore.store.from_url(address)

    def __reduce__(self) -> tuple[type[Bucket], tuple[str]]:
        return (type(self), (self.address,))

    def sizes(self, prefix: str = "") -> dict[str, int]:
        """Key -> bytes of all objects below a prefix.

        Raises
        ------
        OSError
            The storage does not answer, or refuses; or a key leads out of the prefix (obstore takes no `..`).
        """
        import obstore

        with _as_os_error(self.address):
            pages = obstore.list(self._store, prefix=prefix or None, chunk_size=1000)
            return {str(entry["path"]): int(entry["size"]) for page in pages for entry in page}

    def get(self, key: str) -> bytes | None:
        """An object's bytes; None where there is none."""
        import obstore

        try:
            with _as_os_error(self.address):
                return bytes(obstore.get(self._store, key).bytes())
        except FileNotFoundError:
            return None

    def get_ranges(self, key: str, starts: Sequence[int], lengths: Sequence[int]) -> list[bytes]:
        """Parts of an object; neighbors are fetched together."""
        import obstore

        with _as_os_error(self.address):
            return [bytes(part) for part in obstore.get_ranges(self._store, key, starts=starts, lengths=lengths)]

    def put(self, key: str, data: bytes | Path, *, new: bool = False) -> bool:
        """Write an object whole; with `new` only where none is, else False."""
        import obstore
        from obstore.exceptions import AlreadyExistsError

        try:
            with _as_os_error(self.address):
                obstore.put(self._store, key, data, mode="create" if new else "overwrite", use_multipart=False)
        except AlreadyExistsError:
            return False
        return True

    def delete(self, keys: Iterable[str]) -> None:
        """Delete objects; those that are not there do not matter."""
        import obstore

        wanted = list(keys)
        if wanted:
            with _as_os_error(self.address):
                obstore.delete(self._store, wanted)

    def download(self, keys: Iterable[str], folder: Path) -> None:
        """Objects as files below a folder, several at once; those that are not there do not matter."""
        self._each(lambda key: self._fetch(key, folder / key), keys)

    def _fetch(self, key: str, target: Path) -> None:
        import obstore

        try:
            with _as_os_error(self.address):
                parts = obstore.get(self._store, key).stream()  # a shard is large, and several come at once
                target.parent.mkdir(parents=True, exist_ok=True)
                with target.open("wb") as file:
                    for part in parts:
                        file.write(part)
        except FileNotFoundError:
            return

    def mirror(self, sizes: Mapping[str, int], folder: Path, *, empty: Iterable[str] = ()) -> None:
        """Objects of the given sizes as files below a folder; those in `empty` as holes of the same size."""
        holes = set(empty)
        self.download([key for key in sizes if key not in holes], folder)
        for key in holes:
            (folder / key).parent.mkdir(parents=True, exist_ok=True)
            (folder / key).touch()
            os.truncate(folder / key, sizes[key])

    def upload(self, folder: Path, names: Iterable[str], prefix: str) -> None:
        """Files below a folder as objects below a prefix, several at once."""
        self._each(lambda name: self.put(f"{prefix}/{name}", folder / name), names)

    def _each(self, work: Any, items: Iterable[str]) -> None:
        with ThreadPoolExecutor(_THREADS, thread_name_prefix="livprep-objects") as pool:
            list(pool.map(work, items))

    def zarr_store(self) -> zarr.storage.ObjectStore[Any]:
        """The same objects for zarr-python."""
        from zarr.storage import ObjectStore

        return ObjectStore(self._store, read_only=True)


class _as_os_error:  # noqa: N801 - reads as a phrase
    """The storage's own errors as OSError, without what they quote of requests."""

    def __init__(self, address: str) -> None:
        self._address = address

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object, /) -> None:
        from obstore.exceptions import AlreadyExistsError, BaseError

        if isinstance(error, BaseError) and not isinstance(error, (AlreadyExistsError, FileNotFoundError)):
            text = f"{self._address}: the object storage failed ({type(error).__name__}); look at bucket, {_SETTINGS}"
            raise OSError(errno.EIO, text) from None


def relative_files(folder: Path) -> Iterator[str]:
    """Names of all files below a folder, relative to it, sorted."""
    return (path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file())
