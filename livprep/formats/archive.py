"""Files on disk and inside zips, seen as one tree and read without extracting.

Zips are opened with limits: an entry that claims more than `MAX_MEMBER_BYTES`, or expands more than
`MAX_RATIO`-fold above 512 MiB, is refused before it is read; entries that overlap, directories without end and zips
in zips that would fill the memory are refused. Names from zips are never used as paths to write.
"""

from __future__ import annotations

import io
import lzma
import os
import stat
import struct
import threading
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from livprep.cases import FileRef
from livprep.errors import SourceError
from livprep.formats.bounded import MAX_EXPANSION, InflateError, open_regular, overlap, read_entry

MAX_MEMBER_BYTES = 4 << 30
MAX_RATIO = float(MAX_EXPANSION)
"""Asked of large entries alone: mask slices of 3DIRCADb compress up to about 1000-fold (mostly zeros)."""
_RATIO_FLOOR_BYTES = 512 << 20
"""LiTS's longest label volume (987 slices) has 518 MB as int16, and may be almost empty."""
MAX_NESTED_BYTES = 256 << 20
"""Of a zip in a zip, which is held in memory; those of 3DIRCADb have up to 80 MB."""
MAX_MEMBERS = 200_000
MAX_DEPTH = 3
_MAX_DEFLATE = 1032
"""The most that deflate expands: 258 bytes from 2 bits."""
_SKIP = {"__macosx", ".ds_store", "thumbs.db", "desktop.ini"}
_APPLE_DOUBLE = "._"
"""Begins the name of what macOS lays beside a file on foreign file systems; MSD's Task03 was published with them."""
_DAMAGE = (
    zipfile.BadZipFile, zlib.error, InflateError, lzma.LZMAError, struct.error, EOFError, OSError, ValueError,
    NotImplementedError, RuntimeError, IndexError,
)  # fmt: skip
"""All that zipfile and its decoders were seen to raise on damaged bytes; RuntimeError: encrypted."""


def _is_rubbish(name: str) -> bool:
    """Whether an operating system laid the file there."""
    return name.lower() in _SKIP or name.startswith(_APPLE_DOUBLE)


Parts = tuple[str, ...]
Faults = list[tuple[Parts, SourceError]]


def walk(
    root: Path, faults: Faults | None = None, outward: list[Parts] | None = None
) -> Iterator[tuple[Parts, FileRef]]:
    """Yield every file under a folder, zip or single file as (path parts below root's parent, reference).

    The parts of a zip are its stem followed by the names inside, so zipped and loose data look alike. Symbolic
    links that leave the root or lead back up, sockets, FIFOs and devices are not followed. The order is sorted.

    Parameters
    ----------
    root
        Where to look.
    faults
        Gets the parts of each zip or folder that cannot be listed, and why; without it the first one is raised.
    outward
        Gets the parts of each link that leaves the root.

    Raises
    ------
    SourceError
        SOURCE_MISSING: there is no such root; without `faults` also ARCHIVE_….
    """
    root = Path(root).absolute()
    if not root.exists():
        raise SourceError("SOURCE_MISSING", f"{FileRef(str(root))}: no such file or folder")
    yield from _Walk(root, faults, [] if outward is None else outward).path(root, ())


@dataclass
class _Walk:
    root: Path
    faults: Faults | None
    outward: list[Parts]
    linked: set[str] = field(default_factory=set)
    """Folders entered through links, each once: links among folders could otherwise multiply without end."""
    entries: int = 0
    """Of the zip that is being listed and of all zips in it."""

    def path(self, path: Path, parts: Parts) -> Iterator[tuple[Parts, FileRef]]:
        """Yield what lies at a path on disk; `parts` are those of its parent."""
        if path != self.root and (_is_rubbish(path.name) or (path.is_symlink() and not self._follow(path, parts))):
            return
        parts = (*parts, path.name)
        try:
            mode = path.stat().st_mode
            children = sorted(path.iterdir()) if stat.S_ISDIR(mode) else []
        except OSError as error:
            reason = error.strerror or "cannot be listed"
            self._refuse(parts, SourceError("SOURCE_MISSING", f"{FileRef(str(path))}: {reason}"))
            return
        for child in children:
            yield from self.path(child, parts)
        if stat.S_ISREG(mode):
            if path.suffix.lower() == ".zip":
                self.entries = 0
                yield from self.zip(FileRef(str(path)), (*parts[:-1], path.name[:-4]))
            else:
                yield parts, FileRef(str(path))

    def _follow(self, link: Path, parts: Parts) -> bool:
        """Whether a link is gone through; `parts` are those of its parent."""
        target, root, here = (os.path.realpath(path) for path in (link, self.root, link.parent))
        below_root = os.path.commonpath([target, root]) == root
        if not Path(target).exists() or os.path.commonpath([here, target]) == target:
            return False
        if not below_root:
            self.outward.append((*parts, link.name))
            return False
        if not Path(target).is_dir():
            return True
        again = target in self.linked
        self.linked.add(target)
        return not again

    def zip(self, ref: FileRef, parts: Parts) -> Iterator[tuple[Parts, FileRef]]:
        """Yield what lies in a zip; `parts` include its stem."""
        try:
            infos = _list_zip(ref, self.entries)
        except SourceError as error:
            self._refuse(parts, error)
            return
        self.entries += len(infos)
        for info in infos:
            names = tuple(name for name in info.filename.split("/") if name not in ("", "."))
            if info.filename.endswith("/") or not names or any(map(_is_rubbish, names)) or ".." in names:
                continue
            inner = FileRef(ref.path, (*ref.members, info.filename))
            if names[-1].lower().endswith(".zip"):
                yield from self.zip(inner, (*parts, *names[:-1], names[-1][:-4]))
            else:
                yield (*parts, *names), inner

    def _refuse(self, parts: Parts, error: SourceError) -> None:
        if self.faults is None or len(parts) == 1:  # the root itself
            raise error
        self.faults.append((parts, error))


def _list_zip(ref: FileRef, before: int) -> list[zipfile.ZipInfo]:
    if len(ref.members) >= MAX_DEPTH:
        raise SourceError("ARCHIVE_LIMIT", f"{ref}: zips nested deeper than {MAX_DEPTH}")
    infos = _open_zip(ref).infolist()
    if before + len(infos) > MAX_MEMBERS:
        raise SourceError("ARCHIVE_LIMIT", f"{ref}: {before + len(infos)} entries, expected at most {MAX_MEMBERS}")
    if overlap(infos):
        raise SourceError("ARCHIVE_BAD", f"{ref}: its entries overlap")
    return sorted(infos, key=lambda info: info.filename)


def read_bytes(ref: FileRef) -> bytes:
    """Return a file's whole content.

    Raises
    ------
    SourceError
        SOURCE_MISSING, ARCHIVE_BAD (damaged zip or entry) or ARCHIVE_LIMIT.
    """
    return _read(ref, None, MAX_MEMBER_BYTES)


def read_start(ref: FileRef, size: int) -> bytes:
    """Return up to `size` bytes from the begin of a file, without the rest; raises as `read_bytes` does."""
    return _read(ref, size, MAX_MEMBER_BYTES)


def _read(ref: FileRef, size: int | None, limit: int) -> bytes:
    if not ref.members:
        return _read_plain(ref, size, limit)
    archive = _open_zip(FileRef(ref.path, ref.members[:-1]))
    try:
        info = archive.getinfo(ref.members[-1])
    except KeyError as error:
        raise SourceError("SOURCE_MISSING", f"{ref}: no such entry in the zip") from error
    _check_limits(ref, info, limit)
    try:
        return read_entry(archive, info, size)
    except _DAMAGE as error:
        raise SourceError("ARCHIVE_BAD", f"{ref}: the zip entry is damaged ({type(error).__name__})") from None
    except MemoryError:  # LZMA takes its dictionary at once, by the size that the entry states
        raise SourceError("ARCHIVE_LIMIT", f"{ref}: the zip entry does not fit into memory") from None


def _read_plain(ref: FileRef, size: int | None, limit: int) -> bytes:
    try:
        with open_regular(ref.path) as file:
            if size is None and (found := os.fstat(file.fileno()).st_size) > limit:
                raise SourceError("ARCHIVE_LIMIT", f"{ref}: has {found} bytes, expected at most {limit}")
            return file.read() if size is None else file.read(size)
    except OSError as error:
        raise SourceError("SOURCE_MISSING", f"{ref}: {error.strerror or 'cannot be read'}") from error


def _check_limits(ref: FileRef, info: zipfile.ZipInfo, limit: int) -> None:
    ratio = info.file_size / max(1, info.compress_size)
    if info.file_size > limit or (info.file_size > _RATIO_FLOOR_BYTES and ratio > MAX_RATIO):
        raise SourceError(
            "ARCHIVE_LIMIT",
            f"{ref}: the entry expands {ratio:.0f}-fold to {info.file_size} bytes, "
            f"expected at most {MAX_RATIO:.0f}-fold and {limit} bytes",
        )


class _Handles(threading.local):
    """The zips that one thread has open; a case's slices come from the same one or two."""

    def __init__(self) -> None:
        self.archives: dict[FileRef, tuple[zipfile.ZipFile, BinaryIO, int]] = {}
        """Each with its file, and the memory that it takes."""


_handles = _Handles()
_MAX_OPEN = 4
_MAX_HELD = 2 * MAX_NESTED_BYTES


def _open_zip(ref: FileRef) -> zipfile.ZipFile:
    if ref in _handles.archives:
        return _handles.archives[ref][0]
    try:
        limit = min(MAX_NESTED_BYTES, MAX_MEMBER_BYTES)
        file: BinaryIO = io.BytesIO(_read(ref, None, limit)) if ref.members else open_regular(ref.path)
    except OSError as error:
        raise SourceError("ARCHIVE_BAD", f"{ref}: no readable zip ({type(error).__name__})") from None
    try:
        archive = zipfile.ZipFile(file)
    except _DAMAGE as error:
        file.close()
        raise SourceError("ARCHIVE_BAD", f"{ref}: no readable zip ({type(error).__name__})") from None
    memory = len(file.getbuffer()) if isinstance(file, io.BytesIO) else 0
    while len(_handles.archives) >= _MAX_OPEN or memory + sum(e[2] for e in _handles.archives.values()) > _MAX_HELD:
        _close(next(iter(_handles.archives)))
    _handles.archives[ref] = archive, file, memory
    return archive


def _close(ref: FileRef) -> None:
    archive, file, _ = _handles.archives.pop(ref)
    archive.close()
    file.close()


def close_archives() -> None:
    """Close the zips that this thread keeps open (at the end of a case)."""
    while _handles.archives:
        _close(next(iter(_handles.archives)))


def uncompressed_size(ref: FileRef) -> int:
    """Bytes that a file holds once every zip and gzip around it is undone; 0 where it cannot be told.

    A gzip states its length modulo 4 GiB in its last four bytes (RFC 1952); it is an estimate, not a check. What
    states more than it can hold, or more than would be read, has no say in what a run needs.
    """
    try:
        if ref.members:
            info = _open_zip(FileRef(ref.path, ref.members[:-1])).getinfo(ref.members[-1])
            _check_limits(ref, info, MAX_MEMBER_BYTES)
            return info.file_size * (3 if ref.name.endswith(".gz") else 1)
        with open_regular(ref.path) as file:
            size = os.fstat(file.fileno()).st_size
            if not ref.name.endswith(".gz"):
                return size
            file.seek(-4, os.SEEK_END)
            return max(size, min(int.from_bytes(file.read(4), "little"), size * _MAX_DEFLATE))
    except (OSError, KeyError, ValueError, SourceError):
        return 0


def stored_size(ref: FileRef) -> int:
    """Bytes that a file takes in the zip around it, or on disk; 0 where it cannot be told."""
    try:
        if not ref.members:
            return Path(ref.path).stat().st_size
        around = FileRef(ref.path, ref.members[:-1])
        own = _open_zip(around).getinfo(ref.members[-1]).compress_size
        return min(own, stored_size(around)) if around.members else own
    except (OSError, KeyError, ValueError, SourceError):
        return 0
