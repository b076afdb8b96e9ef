"""Files on disk and inside zips, seen as one tree and read without extracting.

Zips are opened with limits: an entry that claims more than `MAX_MEMBER_BYTES`, or expands more than
`MAX_RATIO`-fold above 64 MiB, is refused before it is read. Names from zips are never used as paths to write.
"""

from __future__ import annotations

import io
import os
import stat
import threading
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from livprep.cases import FileRef
from livprep.errors import SourceError

MAX_MEMBER_BYTES = 4 << 30
MAX_RATIO = 1200.0
"""3DIRCADb's mask slices compress up to about 1000-fold (mostly zeros), so the ratio alone refuses little."""
_RATIO_FLOOR_BYTES = 64 << 20
MAX_MEMBERS = 200_000
MAX_DEPTH = 3
_SKIP = {"__MACOSX", ".DS_Store", "Thumbs.db"}


def walk(root: Path) -> Iterator[tuple[tuple[str, ...], FileRef]]:
    """Yield every file under a folder, zip or single file as (path parts below root's parent, reference).

    The parts of a zip are its stem followed by the names inside, so zipped and loose data look alike. Symbolic
    links that leave the root, sockets, FIFOs and devices are not followed. The order is sorted.
    """
    root = Path(root).absolute()
    if not root.exists():
        raise SourceError("SOURCE_MISSING", f"{root}: no such file or folder")
    yield from _walk_path(root, (), root)


def _walk_path(path: Path, parts: tuple[str, ...], root: Path) -> Iterator[tuple[tuple[str, ...], FileRef]]:
    if path.name in _SKIP:
        return
    mode = path.stat().st_mode if _inside(path, root) and path.exists() else 0
    if stat.S_ISDIR(mode):
        for child in sorted(path.iterdir()):
            yield from _walk_path(child, (*parts, path.name), root)
    elif stat.S_ISREG(mode):
        if path.suffix.lower() == ".zip":
            yield from _walk_zip(FileRef(str(path)), (*parts, path.name[:-4]))
        else:
            yield (*parts, path.name), FileRef(str(path))


def _inside(path: Path, root: Path) -> bool:
    return not path.is_symlink() or path == root or path.resolve().is_relative_to(root.resolve())


def _walk_zip(ref: FileRef, parts: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], FileRef]]:
    if len(ref.members) >= MAX_DEPTH:
        raise SourceError("ARCHIVE_LIMIT", f"{ref}: zips nested deeper than {MAX_DEPTH}")
    infos = _open_zip(ref).infolist()
    if len(infos) > MAX_MEMBERS:
        raise SourceError("ARCHIVE_LIMIT", f"{ref}: {len(infos)} entries, expected at most {MAX_MEMBERS}")
    for info in sorted(infos, key=lambda info: info.filename):
        names = tuple(name for name in info.filename.split("/") if name not in ("", "."))
        if info.is_dir() or not names or _SKIP.intersection(names) or ".." in names:
            continue
        inner = FileRef(ref.path, (*ref.members, info.filename))
        if names[-1].lower().endswith(".zip"):
            yield from _walk_zip(inner, (*parts, *names[:-1], names[-1][:-4]))
        else:
            yield (*parts, *names), inner


def read_bytes(ref: FileRef) -> bytes:
    """Return a file's whole content.

    Raises
    ------
    SourceError
        SOURCE_MISSING, ARCHIVE_BAD (damaged zip or entry) or ARCHIVE_LIMIT.
    """
    if not ref.members:
        try:
            return Path(ref.path).read_bytes()
        except OSError as error:
            raise SourceError("SOURCE_MISSING", f"{ref}: {error.strerror or 'cannot be read'}") from error
    archive = _open_zip(FileRef(ref.path, ref.members[:-1]))
    try:
        info = archive.getinfo(ref.members[-1])
        _check_limits(ref, info)
        return archive.read(info)
    except KeyError as error:
        raise SourceError("SOURCE_MISSING", f"{ref}: no such entry in the zip") from error
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, RuntimeError) as error:
        raise SourceError("ARCHIVE_BAD", f"{ref}: the zip entry is damaged ({type(error).__name__})") from error


def _check_limits(ref: FileRef, info: zipfile.ZipInfo) -> None:
    ratio = info.file_size / max(1, info.compress_size)
    if info.file_size > MAX_MEMBER_BYTES or (info.file_size > _RATIO_FLOOR_BYTES and ratio > MAX_RATIO):
        raise SourceError(
            "ARCHIVE_LIMIT",
            f"{ref}: the entry expands {ratio:.0f}-fold to {info.file_size} bytes, "
            f"expected at most {MAX_RATIO:.0f}-fold and {MAX_MEMBER_BYTES} bytes",
        )


class _Handles(threading.local):
    """The zips that one thread has open; a case's slices come from the same one or two."""

    def __init__(self) -> None:
        self.archives: dict[FileRef, zipfile.ZipFile] = {}


_handles = _Handles()
_MAX_OPEN = 4


def _open_zip(ref: FileRef) -> zipfile.ZipFile:
    if ref in _handles.archives:
        return _handles.archives[ref]
    try:
        archive = zipfile.ZipFile(io.BytesIO(read_bytes(ref)) if ref.members else ref.path)
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise SourceError("ARCHIVE_BAD", f"{ref}: no readable zip ({type(error).__name__})") from error
    while len(_handles.archives) >= _MAX_OPEN:
        _handles.archives.pop(next(iter(_handles.archives))).close()
    _handles.archives[ref] = archive
    return archive


def close_archives() -> None:
    """Close the zips that this thread keeps open (at the end of a case)."""
    while _handles.archives:
        _handles.archives.popitem()[1].close()


def uncompressed_size(ref: FileRef) -> int:
    """Bytes that a file holds once every zip and gzip around it is undone; 0 where it cannot be told.

    A gzip states its length modulo 4 GiB in its last four bytes (RFC 1952); it is an estimate, not a check.
    """
    try:
        if ref.members:
            size = _open_zip(FileRef(ref.path, ref.members[:-1])).getinfo(ref.members[-1]).file_size
            return size * (3 if ref.name.endswith(".gz") else 1)
        size = Path(ref.path).stat().st_size
        if not ref.name.endswith(".gz"):
            return size
        with Path(ref.path).open("rb") as file:
            file.seek(-4, os.SEEK_END)
            return max(size, int.from_bytes(file.read(4), "little"))
    except (OSError, KeyError, ValueError, SourceError):
        return 0
