"""Small files that would take much memory or time if they were believed, and the code that each is refused with."""

from __future__ import annotations

import bz2
import gzip
import io
import struct
import sys
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import corpus_dicom as corpus
import numpy as np
from building import nifti_bytes, plain_slice
from mutation_readers import _frames, _slice
from pydicom.encaps import encapsulate
from pydicom.uid import RLELossless

MEGABYTE = 1 << 20
GIGABYTE = 1 << 30
DEFLATED = b"1.2.840.10008.1.2.1.99"
_IMAGE = np.zeros((4, 6, 5), np.int16)


def deflated_zeros(size: int, start: bytes = b"") -> bytes:
    """Raw deflate of `start` and some megabytes of zeros, made from one repeated block."""
    stream = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    head = stream.compress(start) + stream.flush(zlib.Z_FULL_FLUSH)
    block = stream.compress(bytes(MEGABYTE)) + stream.flush(zlib.Z_FULL_FLUSH)
    return head + block * (size // MEGABYTE) + stream.flush()


def gzipped_zeros(start: bytes, size: int) -> bytes:
    """A gzip whose CRC is wrong, which only its last bytes tell."""
    return gzip.compress(b"")[:10] + deflated_zeros(size, start) + struct.pack("<II", 0, (len(start) + size) % 2**32)


def claim(*shape_xyz: int, datatype: int = 4) -> bytes:
    """A NIfTI header that claims a shape, and a few voxels."""
    return nifti_bytes(_IMAGE, fields={"dim": [3, *shape_xyz, 1, 1, 1, 1], "datatype": datatype})


def _element(tag: tuple[int, int], vr: bytes, value: bytes) -> bytes:
    value += bytes(len(value) % 2)
    if vr in (b"OB", b"UN", b"UC", b"OV"):
        return struct.pack("<HH2sHI", *tag, vr, 0, len(value)) + value
    return struct.pack("<HH2sH", *tag, vr, len(value)) + value


def deflated_dicom(*before: bytes, command: bytes = b"") -> bytes:
    """A deflated DICOM of 650 MB, its syntax behind other elements of the file's head, or with a command set."""
    head = b"".join(before) + _element((2, 0x10), b"UI", DEFLATED)
    start = _element((8, 0x60), b"CS", b"CT") + struct.pack("<HH2sHI", 9, 0x1010, b"OB", 0, 650 * MEGABYTE)
    return bytes(128) + b"DICM" + head + command + deflated_zeros(650 * MEGABYTE, start)


def _framed(frame: bytes, syntax: str, side: int = 16) -> bytes:
    data = _slice(0)
    data.PixelData = encapsulate([frame])
    data["PixelData"].is_undefined_length = True
    data.Rows = data.Columns = side
    data.file_meta.TransferSyntaxUID = syntax
    return corpus.encoded(data)


def jpeg_2000(side: int, stated: int) -> bytes:
    """A JPEG 2000 slice whose codestream states another size than its header."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(np.zeros((16, 16), np.uint16)).save(buffer, "JPEG2000", no_jp2=True, irreversible=False)
    frame = bytearray(buffer.getvalue())
    at = frame.index(b"\xff\x51") + 6
    for offset in (0, 4, 16, 20):  # Xsiz, Ysiz, XTsiz, YTsiz (ISO 15444-1, A.5.1)
        frame[at + offset : at + offset + 4] = stated.to_bytes(4, "big")
    return _framed(bytes(frame), corpus.JPEG_2000, side)


def rle(size: int) -> bytes:
    """An RLE slice of 16 x 16 pixels with two segments of zeros, 64 times as long as their bytes."""
    segment = b"\x81\0" * (size // 256)
    offsets = struct.pack("<16I", 2, 64, 64 + len(segment), *[0] * 13)
    return _framed(offsets + segment * 2, RLELossless)


def zipped(*entries: tuple[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, data in entries:
            archive.writestr(zipfile.ZipInfo(name), data, method)
    return buffer.getvalue()


def raw_entry(name: str, coded: bytes, size: int, method: int = zipfile.ZIP_DEFLATED) -> bytes:
    """A zip of one entry with coded bytes as given, which states `size`."""
    label = name.encode()
    facts = struct.pack("<HHHHHIIIHH", 20, 0, method, 0, 33, 0, len(coded), size, len(label), 0)
    local = b"PK\3\4" + facts + label + coded
    central = b"PK\1\2" + struct.pack("<H", 20) + facts + struct.pack("<HHHII", 0, 0, 0, 0, 0) + label
    return local + central + b"PK\5\6" + struct.pack("<HHHHIIH", 0, 0, 1, 1, len(central), len(local), 0)


def overlapping(count: int) -> bytes:
    """A zip whose entries are all the same bytes: 100 MB each."""
    one = raw_entry("bomb.nii", deflated_zeros(100 * MEGABYTE), 100 * MEGABYTE)
    start = one.rindex(b"PK\1\2")
    local, central = one[:start], one[start : one.rindex(b"PK\5\6")]
    directory = b"".join(central.replace(b"bomb.nii", b"%04d.nii" % k) for k in range(count))
    return local + directory + b"PK\5\6" + struct.pack("<HHHHIIH", 0, 0, count, count, len(directory), len(local), 0)


def endless_directory() -> bytes:
    """A zip that states a directory of nearly 4 GB."""
    data = bytearray(zipped(("x", b"")))
    at = data.rindex(b"PK\5\6")
    data[at + 12 : at + 20] = struct.pack("<II", 0xFFFFFFF0, 0)
    return bytes(data)


def forty_two() -> bytes:
    """Zips in zips in zips, each with four of the next, and a gigabyte of zeros in the innermost, as 42.zip is."""
    data = raw_entry("0.dll", deflated_zeros(GIGABYTE), GIGABYTE)
    for level in range(5):
        data = zipped(*((f"{level}{k}.zip", data) for k in range(4)), method=zipfile.ZIP_DEFLATED)
    return data


Build = Callable[[], bytes]
BOMBS: dict[str, tuple[str, Build, set[str]]] = {
    "90 bytes that claim 32000 x 32000 x 2000": (
        "a.nii.gz", lambda: gzip.compress(claim(32000, 32000, 2000)), {"NIFTI_DIM"}),
    "a header that claims 4000 x 4000 x 4000": ("a.nii", lambda: claim(4000, 4000, 4000), {"NIFTI_SHORT"}),
    "the same in a gzip": ("a.nii.gz", lambda: gzip.compress(claim(4000, 4000, 4000, datatype=64)), {"NIFTI_SHORT"}),
    "a gigabyte behind the voxels": ("a.nii.gz", lambda: gzipped_zeros(claim(5, 6, 4), GIGABYTE), {"GZIP_LIMIT"}),
    "a gigabyte of voxels": (
        "a.nii.gz", lambda: gzipped_zeros(claim(1024, 1024, 512)[:352], GIGABYTE), {"GZIP_LIMIT"}),
    "as many voxels as pass, of 8 bits": (
        "a.nii.gz", lambda: gzipped_zeros(claim(1024, 1024, 256, datatype=2)[:352], 256 * MEGABYTE), {"GZIP_CORRUPT"}),
    "as many voxels as pass, as float64": (
        "a.nii.gz", lambda: gzipped_zeros(claim(512, 512, 358, datatype=64)[:352], 716 * MEGABYTE), {"GZIP_CORRUPT"}),
    "a deflated DICOM": ("a.dcm", deflated_dicom, {"DICOM_SYNTAX"}),
    "its syntax far behind": (
        "a.dcm", lambda: deflated_dicom(_element((2, 2), b"OB", bytes(9000))), {"DICOM_SYNTAX"}),
    "its syntax behind an odd element": (
        "a.dcm", lambda: deflated_dicom(_element((2, 2), b"UC", bytes(5000)), _element((2, 3), b"OV", bytes(70000))),
        {"DICOM_SYNTAX"}),
    "its data behind a command set": (
        "a.dcm", lambda: deflated_dicom(command=struct.pack("<HHI4s", 0, 2, 4, b"1.2\0")), {"DICOM_SYNTAX"}),
    "RLE without end": ("a.dcm", lambda: rle(GIGABYTE), {"PIXELDATA_CODEC"}),
    "a codestream of 60000 x 60000": ("a.dcm", lambda: jpeg_2000(16, 60000), {"PIXELDATA_CODEC"}),
    "frames without end": (
        "a.dcm", lambda: corpus.encoded(_many_frames(2**31 - 1)), {"SERIES_FRAMES"}),
    "a zipped gigabyte": (
        "a.zip", lambda: raw_entry("a.nii", deflated_zeros(GIGABYTE), GIGABYTE), {"ARCHIVE_LIMIT"}),
    "a zipped gigabyte that states 1000 bytes": (
        "a.zip", lambda: raw_entry("a.nii", deflated_zeros(GIGABYTE), 1000), {"ARCHIVE_BAD"}),
    "the same in bzip2": (
        "a.zip", lambda: raw_entry("a.nii", bz2.compress(bytes(64 * MEGABYTE)), 1000, zipfile.ZIP_BZIP2),
        {"ARCHIVE_BAD"}),
    "a kilobyte that states 4 GB": ("a.zip", lambda: raw_entry("a.nii", bytes(1000), 2**32 - 2, 0), {"ARCHIVE_BAD",
                                                                                                   "ARCHIVE_LIMIT"}),
    "entries that overlap": ("a.zip", lambda: overlapping(1000), {"ARCHIVE_BAD"}),
    "a directory without end": ("a.zip", endless_directory, {"ARCHIVE_BAD"}),
    "a zip in a zip that expands": (
        "a.zip", lambda: raw_entry("b.zip", deflated_zeros(400 * MEGABYTE), 400 * MEGABYTE), {"ARCHIVE_LIMIT"}),
    "42.zip": ("a.zip", forty_two, {"ARCHIVE_LIMIT"}),
}  # fmt: skip


def _many_frames(count: int) -> corpus.Dataset:
    data = _frames()
    data.NumberOfFrames = count
    return data


def write_thin_slices(folder: Path, count: int = 100) -> None:
    """Slices that claim 4096 x 4096 pixels each and hold a frame of some bytes."""
    folder.mkdir()
    for k in range(count):
        data = _slice(0)
        data.ImagePositionPatient, data.ImagesInAcquisition, data.InstanceNumber = [0, 0, 2.5 * k], count, k + 1
        data.PixelData, data.Rows, data.Columns = encapsulate([bytes(100)]), 4096, 4096
        data["PixelData"].is_undefined_length = True
        data.file_meta.TransferSyntaxUID = corpus.JPEG_2000
        (folder / f"{k}").write_bytes(corpus.encoded(data))


def main() -> None:
    """Inspect the paths of the command line one after another; codes, and how far memory grew."""
    import json
    import resource
    import time

    from livprep.errors import LivError
    from livprep.inspection import inspect_sources

    small = Path(sys.argv[1])
    small.write_bytes(plain_slice(0))
    list(inspect_sources([small]))  # all that a first scan imports
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = []
    for path in sys.argv[2:]:
        started = time.monotonic()
        try:
            codes = [record["code"] for record in inspect_sources([Path(path)])]
        except LivError as error:
            codes = [error.code]
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024
        found.append({"codes": codes, "grown_mb": grown, "seconds": round(time.monotonic() - started, 2)})
    print(json.dumps(found))


if __name__ == "__main__":
    main()
