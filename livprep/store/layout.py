"""Names inside a store, and how work becomes visible: staged, hashed, synced, renamed."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import hashlib
import json
import logging
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from livprep.errors import StoreError
from livprep.provenance import digest_of

log = logging.getLogger(__name__)

CASES, STAGING, SPLITS, JOURNAL = "cases", ".staging", "splits", "journal"
HU, TRAIN, INDEX, WINDOWS = "hu", "train", "index", "windows"
LABELS = "labels/liver_tumor"
NEAR = "near"
"""Voxels of the index that lie near the liver and outside it."""
IMAGE = "scale0/image"
LABEL_IMAGE = "image"
"""ome-zarr-models 1.7 refuses label images whose level is not a direct child, so the one level lies there."""
MANIFEST = "manifest.json"
OWN, OWN_DIGEST = "livprep", "livprep_digest"
"""Keys of our attributes, and of their sha256 where no manifest covers them."""
_READ_STEP = 1 << 20
_UNSUPPORTED = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOLCK)
"""How file systems say that they have no such call; flock(2), fsync(2)."""
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2
"""Arguments of renameat2 (linux/fcntl.h, linux/fs.h)."""
_PARTIAL = re.compile(r"\.[^/]+\.json\.[0-9a-f]{32}")
PARTIAL_AT = (".*", f"{CASES}/.*", f"{CASES}/*/.*", f"{SPLITS}/.*")
"""Where `write_json` writes beside files that are already visible."""


def is_plain(name: str) -> bool:
    """Whether a name from outside is one visible path component."""
    return bool(name) and Path(name).name == name and not name.startswith(".") and name.isprintable()


def channels_path(store: Path, case_id: str) -> Path:
    """File that keeps the channels of a case which is gone until it is published again; no dead work, so `gc` keeps it.

    It is there only between a change of the store's preparation and the case's next publication.
    """
    return store / STAGING / f"{case_id}.channels.json"


def case_path(store: Path, case_id: str) -> Path:
    """Folder of a published case."""
    return store / CASES / case_id


def staging_entries(store: Path) -> list[Path]:
    """What killed runs left behind: staged folders, and metadata that were being replaced; lock files are not work."""
    folder = store / STAGING
    staged = [path for path in folder.iterdir() if path.is_dir()] if folder.is_dir() else []
    partial = [path for place in PARTIAL_AT for path in store.glob(place) if is_partial(path.name)]
    return sorted([*staged, *partial])


def is_partial(name: str) -> bool:
    """Whether a file name is that of a JSON file which `write_json` had not finished."""
    return _PARTIAL.fullmatch(name) is not None


_mark: ContextVar[str] = ContextVar("mark", default="")


@contextlib.contextmanager
def marked(mark: str) -> Iterator[None]:
    """Put `mark` into the names of what is staged meanwhile; see `discard_marked`."""
    before = _mark.set(mark)
    try:
        yield
    finally:
        _mark.reset(before)


def discard_marked(store: Path, mark: str) -> None:
    """Remove what staged under `mark` and did not live to remove it."""
    for entry in staging_entries(store):
        if mark and entry.is_dir() and entry.suffix.startswith(f".{mark}-"):
            discard(entry)


def discard(entry: Path) -> None:
    """Delete a staged folder whose writer may still live: it is renamed first, so that it cannot be published half."""
    grave = entry.with_name(f"{entry.name}.dead")
    with contextlib.suppress(FileNotFoundError):  # it was published or removed meanwhile
        entry.rename(grave)
        _remove_tree(grave)


@contextlib.contextmanager
def staged(store: Path, name: str) -> Iterator[Path]:
    """A fresh folder on the store's file system; removed at the end unless it was renamed away."""
    mark = f"{_mark.get()}-" if _mark.get() else ""
    folder = store / STAGING / f"{name}.{mark}{uuid.uuid4().hex}"
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        _remove_tree(folder)


def _remove_tree(folder: Path) -> None:
    """Delete a folder for good; in a run that is stopped zarr's own thread may still write into it for a moment."""
    for _ in range(50):
        if not folder.exists():
            return
        shutil.rmtree(folder, ignore_errors=True)
        time.sleep(0.02)  # a file written meanwhile brings the folder back


@contextlib.contextmanager
def locked(store: Path, name: str) -> Iterator[None]:
    """Hold the lock of a case; the kernel frees it when the holder dies.

    Lustre without `-o flock` and NFS with `nolock` have no locks. What is published there is still whole, for it
    appears by one rename; only two runs that change channels of one case at once may leave its metadata behind.
    """
    (store / STAGING).mkdir(parents=True, exist_ok=True)
    # Everybody who may write into the folder may lock: the umask says who that is.
    handle = os.open(store / STAGING / f"{name}.lock", os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                raise
            log.info("%s: this file system has no locks", name)
        yield
    finally:
        os.close(handle)


@dataclass(frozen=True)
class FileFacts:
    """What a manifest says of a file."""

    size: int
    sha256: str


Hashes = dict[Path, FileFacts]


def write_manifest(component: Path, facts: dict[str, Any], known: Hashes | None = None) -> None:
    """Record size and sha256 of every file below a component; `known` ones were hashed while they were written."""
    files = {}
    for path in sorted(component.rglob("*")):
        if path.is_file():
            entry = (known or {}).get(path) or FileFacts(path.stat().st_size, file_sha256(path))
            files[path.relative_to(component).as_posix()] = {"size": entry.size, "sha256": entry.sha256}
    write_json(component / MANIFEST, {**facts, "files": files})


def read_manifest(path: Path) -> dict[str, str]:
    """File -> sha256 of a manifest; StoreError STORE_CORRUPT where it is none."""
    try:
        files = json.loads(path.read_text(encoding="utf-8"))["files"]
        return {str(name): str(facts["sha256"]) for name, facts in files.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise StoreError("STORE_CORRUPT", f"{path.name}: no usable manifest ({type(error).__name__})") from error


def file_sha256(path: Path) -> str:
    """Hex sha256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_READ_STEP):
            digest.update(piece)
    return digest.hexdigest()


def json_text(data: Any) -> str:
    """The one JSON text of a value; `verify` compares files with it to the byte."""
    # without indentation, which Python's slow encoder writes
    return json.dumps(data, sort_keys=True, allow_nan=False) + "\n"


def write_json(path: Path, data: Any) -> None:
    """Write JSON with sorted keys, whole or not at all."""
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with partial.open("w", encoding="utf-8") as file:
            file.write(json_text(data))
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def sync_tree(folder: Path) -> None:
    """Force every file and folder below to disk, the leaves first."""
    for root, _, names in os.walk(folder, topdown=False):
        for name in names:
            sync_path(Path(root) / name)
        sync_path(Path(root))


def sync_path(path: Path) -> None:
    """Force a file, or the names in a folder, to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        # CIFS and some FUSE file systems take no fsync of a folder, and have nothing to say about its names.
        if error.errno not in _UNSUPPORTED or not path.is_dir():
            raise
    finally:
        os.close(handle)


def publish(staged_folder: Path, target: Path) -> bool:
    """Sync a staged folder and rename it into place; False where another writer was first."""
    sync_tree(staged_folder)
    try:
        staged_folder.rename(target)
    except OSError as error:
        # sshfs and some network drives have other words for a place that is taken
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST) or (target / "zarr.json").is_file():
            return False
        raise
    sync_path(target.parent)
    return True


def replace_published(store: Path, staged_folder: Path, target: Path) -> bool:
    """Put a staged folder in the place of a published one; False where another writer took the place meanwhile.

    Where the kernel and the file system can exchange two names (renameat2 of Linux), no reader and no crash ever
    sees the place empty; elsewhere it is empty between two renames.
    """
    sync_tree(staged_folder)
    if target.exists() and _exchange(staged_folder, target):
        sync_path(target.parent)
        return True  # the old folder lies where the staged one was, and goes with it
    if target.exists():
        withdraw(store, target)
    return publish(staged_folder, target)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two names in one step; False where that is not to be had."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    done: int = rename(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE)
    return done == 0


def withdraw(store: Path, target: Path) -> None:
    """Take a published folder out of sight by one rename, then delete it."""
    with staged(store, f"{target.name}.old") as grave:
        target.rename(grave / target.name)
        sync_path(target.parent)


def consolidate(group: Path) -> None:
    """Rebuild a group's consolidated metadata from the metadata files that lie below it.

    It is derived data, so that xarray opens the group without a search; our own reader lists folders instead.
    """
    own = consolidated(group)
    if own != json.loads((group / "zarr.json").read_text(encoding="utf-8")):
        write_json(group / "zarr.json", own)


def consolidated(group: Path) -> dict[str, Any]:
    """A group's metadata with the consolidated metadata that it should have."""

    def node(path: Path) -> dict[str, Any]:
        data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        data.pop("consolidated_metadata", None)
        return data

    metadata = {
        path.parent.relative_to(group).as_posix(): node(path)
        for path in sorted(group.rglob("zarr.json"))
        if path.parent != group
    }
    own = node(group / "zarr.json")
    own["consolidated_metadata"] = {"kind": "inline", "must_understand": False, "metadata": metadata}
    return own


def own_attributes(data: dict[str, Any]) -> dict[str, Any]:
    """Attributes of a group of ours that no manifest covers: with a digest of themselves, so that damage shows."""
    return {OWN: data, OWN_DIGEST: digest_of(data)}


def plain_group(attributes: dict[str, Any]) -> dict[str, Any]:
    """Metadata of a Zarr v3 group."""
    return {"zarr_format": 3, "node_type": "group", "attributes": attributes}


def read_attributes(group: Path) -> dict[str, Any]:
    """Our own attributes of a group.

    Raises
    ------
    StoreError
        STORE_UNREADABLE: no group of ours.
    """
    try:
        node = json.loads((group / "zarr.json").read_text(encoding="utf-8"))
        attributes = node["attributes"]["livprep"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreError("STORE_UNREADABLE", f"{group}: no livprep group ({type(error).__name__})") from error
    if not isinstance(attributes, dict):
        raise StoreError("STORE_UNREADABLE", f"{group}: its livprep attribute is no mapping")
    return attributes
