"""Processor time of the parts of ingesting one case that no program can leave out, each done by itself.

    python -m benchmarks.ingest_parts SRC CASE [--spacing-yx 1]

inflate (ISA-L), hash what was read, decode (pydicom and frombuffer; NIfTI needs none), resample (the compiled taps),
encode (Blosc and crc32c of HU, packed array and labels), hash and write what was encoded, fsync. Nothing is checked,
counted, indexed or described, and what one part makes is kept for the next.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import os
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pydicom
from isal import isal_zlib
from numcodecs import blosc

from benchmarks.machine import describe
from livprep.cases import Case, FileRef
from livprep.catalog import Catalog, load_catalog
from livprep.geometry import Geometry, canonical_axes
from livprep.prepare import Preparation
from livprep.resample import resample_hu, resample_labels
from livprep.schema import PROFILES
from livprep.sources import catalog_beside, discover, read_case
from livprep.store import pack


class Stopwatch:
    """Adds up processor seconds by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def run(self, name: str, part: Callable[[], Any]) -> Any:
        """Do a part and add its time."""
        started = time.process_time()
        result = part()
        self.seconds[name] = self.seconds.get(name, 0.0) + time.process_time() - started
        return result


def parts(case: Case, preparation: Preparation, grid: Geometry, scratch: Path) -> dict[str, float]:
    """Processor seconds of each part; `grid` is that of the source."""
    watch = Stopwatch()
    image, masks = decode(case, watch)
    axes, canonical = canonical_axes(grid)
    hu = np.ascontiguousarray(axes.apply(image.reshape(grid.shape_zyx)))
    labels = np.ascontiguousarray(axes.apply(masks.reshape(grid.shape_zyx)))
    wanted = preparation.grid(grid)
    if wanted != canonical:
        resample_hu(hu[:1], canonical_slice(canonical), canonical_slice(wanted), "cubic")  # compiles
        resample_labels(labels[:1], canonical_slice(canonical), canonical_slice(wanted))
        hu = watch.run("resample", lambda: resample_hu(hu, canonical, wanted, "cubic"))
        labels = watch.run("resample", lambda: resample_labels(labels, canonical, wanted))
    packed = watch.run("encode", lambda: pack(hu, labels))
    for k, volume in enumerate((hu, packed, labels)):
        encoded = watch.run("encode", lambda volume=volume: encode(volume))
        watch.run("hash and write", lambda k=k, encoded=encoded: write(scratch / str(k), encoded))
    return watch.seconds


def canonical_slice(grid: Geometry) -> Geometry:
    """The grid of one slice."""
    return Geometry((1, *grid.shape_zyx[1:]), grid.spacing_mm)


def decode(case: Case, watch: Stopwatch) -> tuple[np.ndarray, np.ndarray]:
    """Scan and union of the masks, in the order of their files."""
    image = []
    for data in inflated(case.image, watch):
        image.append(watch.run("decode", lambda data=data: pixels(data)))
    hu = watch.run("decode", lambda: stacked(image))
    labels = np.zeros(hu.size, dtype=np.uint8)
    for _, refs in case.masks:
        place = 0
        for data in inflated(refs, watch):
            values = watch.run("decode", lambda data=data: pixels(data))[0].ravel()
            part = labels[place : place + values.size]
            watch.run("decode", lambda part=part, values=values: np.copyto(part, 1, where=values != 0))
            place += values.size
    return hu, labels


def inflated(refs: tuple[FileRef, ...], watch: Stopwatch) -> list[bytes]:
    """Bytes of the files, inflated and hashed."""
    archives: dict[tuple[str, tuple[str, ...]], zipfile.ZipFile] = {}
    contents = []
    for ref in refs:
        key = ref.path, ref.members[:-1]
        if ref.members and key not in archives:
            outer = zipfile.ZipFile(ref.path)
            for member in ref.members[:-1]:
                outer = zipfile.ZipFile(io.BytesIO(outer.read(member)))
            archives[key] = outer
        data = watch.run("inflate", lambda ref=ref, key=key: content(ref, archives.get(key)))
        watch.run("hash", lambda data=data: hashlib.sha256(data).hexdigest())
        contents.append(watch.run("inflate", lambda data=data: gunzipped(data)))
    return contents


def content(ref: FileRef, archive: zipfile.ZipFile | None) -> bytes:
    """Bytes of a file or an entry of a zip."""
    if archive is None or archive.fp is None:
        return Path(ref.path).read_bytes()
    info = archive.getinfo(ref.members[-1])
    archive.fp.seek(info.header_offset)
    header = archive.fp.read(30)
    archive.fp.seek(int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little"), 1)
    data: bytes = isal_zlib.decompress(archive.fp.read(info.compress_size), wbits=-15, bufsize=info.file_size)
    isal_zlib.crc32(data)
    return data


def gunzipped(data: bytes) -> bytes:
    """A gzip's content, anything else as it is."""
    if data[:2] != b"\x1f\x8b":
        return data
    size = int.from_bytes(data[-4:], "little")
    return isal_zlib.decompress(data, wbits=31, bufsize=size)  # type: ignore[no-any-return]


def pixels(data: bytes) -> tuple[np.ndarray, float]:
    """Stored values and intercept of a DICOM slice; the values of a NIfTI."""
    if data[128:132] != b"DICM":
        kind = {2: np.uint8, 4: np.int16, 8: np.int32, 16: np.float32, 64: np.float64}
        code = int.from_bytes(data[70:72], "little")
        return np.frombuffer(data, kind[code], offset=int(np.frombuffer(data, "<f4", 1, 108)[0])), 0.0
    dataset = pydicom.dcmread(io.BytesIO(data))
    sign = "i" if dataset.PixelRepresentation else "u"
    return np.frombuffer(dataset.PixelData, f"<{sign}{dataset.BitsAllocated // 8}"), float(dataset.RescaleIntercept)


def stacked(sections: list[tuple[np.ndarray, float]]) -> np.ndarray:
    """Slices in one int16 volume, their intercept added."""
    out = np.empty(sum(values.size for values, _ in sections), dtype=np.int16)
    place = 0
    for values, intercept in sections:
        np.add(values, np.int16(intercept), out=out[place : place + values.size], casting="unsafe")
        place += values.size
    return out


def encode(volume: np.ndarray) -> list[bytes]:
    """Blosc and crc32c of each inner chunk that is not empty, as the default profile writes them."""
    profile = PROFILES["balanced"]
    blosc.use_threads = False
    out = []
    depth, height, width = profile.inner_zyx
    shuffle = blosc.SHUFFLE if volume.itemsize > 1 else blosc.NOSHUFFLE
    for z in range(0, volume.shape[0], depth):
        for y in range(0, volume.shape[1], height):
            for x in range(0, volume.shape[2], width):
                chunk = np.zeros(profile.inner_zyx, volume.dtype)
                part = volume[z : z + depth, y : y + height, x : x + width]
                chunk[tuple(slice(n) for n in part.shape)] = part
                if not chunk.any():
                    continue
                name = (profile.codec or "lz4").encode()
                payload = blosc.compress(chunk, name, profile.level, shuffle, profile.block_bytes, chunk.itemsize)
                google_crc32c.value(payload)
                out.append(payload)
    return out


def write(path: Path, encoded: list[bytes]) -> None:
    """Hash, write and sync."""
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for payload in encoded:
            digest.update(payload)
            file.write(payload)
        file.flush()
        os.fsync(file.fileno())


def grid_of(sources: list[Path], case_id: str) -> Geometry:
    """Grid of a case's source."""
    catalog = load_catalog(catalog_beside(sources))
    return read_case(_case(sources, catalog, case_id), catalog).volume.geometry


def measure(sources: list[Path], case_id: str, preparation: Preparation, grid: Geometry) -> dict[str, float]:
    """Processor seconds of the unavoidable parts of one case; `grid` is that of its source."""
    case = _case(sources, load_catalog(catalog_beside(sources)), case_id)
    with tempfile.TemporaryDirectory() as scratch:
        return parts(case, preparation, grid, Path(scratch))


def _case(sources: list[Path], catalog: Catalog, case_id: str) -> Case:
    (case,) = (case for case in discover(sources, catalog).cases if case.case_id == case_id)
    return case


def main() -> None:
    """Print a line a part."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path)
    parser.add_argument("case")
    parser.add_argument("--spacing-yx", type=float, default=None, help="mm in-plane; native by default")
    options = parser.parse_args()
    preparation = Preparation((None, options.spacing_yx, options.spacing_yx))
    print(describe("numpy", "pydicom", "isal", "numcodecs"))
    seconds = measure([options.source], options.case, preparation, grid_of([options.source], options.case))
    for name, value in seconds.items():
        print(f"{name:<16} {value:6.3f} s")
    print(f"{'sum':<16} {sum(seconds.values()):6.3f} s")


if __name__ == "__main__":
    main()
