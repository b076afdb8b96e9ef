"""Small DICOM slices, series, NIfTI files and data set folders for tests, valid unless a test changes them."""

from __future__ import annotations

import hashlib
import io
import shutil
import warnings
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pydicom

from livprep.cases import FileRef
from livprep.errors import SourceError
from livprep.formats.dicom import Series, assemble
from livprep.formats.dicom_slice import Slice, parse_slices
from livprep.formats.dicom_write import SeriesHeader
from livprep.formats.nifti_write import nifti_header
from livprep.geometry import Geometry
from livprep.labels import label_counts
from livprep.volume import LabelledVolume, LabelMap, Volume

REF = FileRef("/scan/image_0")

_SERIES = {
    (0x0008, 0x0060): ("CS", "CT"),
    (0x0010, 0x0010): ("PN", "liver_01^patient"),
    (0x0018, 0x0050): ("DS", "2"),
    (0x0020, 0x000E): ("UI", "2.25.7"),
    (0x0020, 0x0037): ("DS", "1\\0\\0\\0\\1\\0"),
    (0x0028, 0x0030): ("DS", "0.8\\0.7"),
    (0x0028, 0x1052): ("DS", "0"),
    (0x0028, 0x1053): ("DS", "1"),
}


def plain_slice(k: int = 0, pixels: np.ndarray | None = None, dz: float = 2.0) -> bytes:
    """Slice `k` of a valid series: 6 x 5 pixels of -1024 + 100 k unless given, 0.8 x 0.7 mm (y, x)."""
    if pixels is None:
        pixels = np.full((6, 5), -1024 + 100 * k, np.int16)
    own = {(0x0020, 0x0032): ("DS", f"0\\0\\{k * dz:g}"), (0x0020, 0x0013): ("IS", str(k))}
    return SeriesHeader(_SERIES).slice_bytes(f"2.25.7.{k}", own, pixels)


def edited(data: bytes, **changes: Any) -> bytes:
    """The same DICOM file with elements set by keyword; None deletes one."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid values are the point
        dataset = pydicom.dcmread(io.BytesIO(data))
        for keyword, value in changes.items():
            if value is None:
                delattr(dataset, keyword)
            else:
                setattr(dataset, keyword, value)
        buffer = io.BytesIO()
        dataset.save_as(buffer)
    return buffer.getvalue()


def parsed(files: Iterable[bytes]) -> list[Slice]:
    """Slices of files that are named image_0, image_1 ... in the order given."""
    refs = ((FileRef(f"/scan/image_{k}"), data) for k, data in enumerate(files))
    return [entry for ref, data in refs for entry in parse_slices(ref, data)]


def pixels_of(data: bytes) -> np.ndarray:
    """HU of one slice, `(rows, columns)`."""
    (entry,) = parse_slices(REF, data)
    out = np.empty(entry.pixels.shape, dtype=np.int16)
    entry.pixels.decode(out)
    return out


def assembled(files: Iterable[bytes]) -> Series:
    """The series of files."""
    return assemble("image", parsed(files))


def nifti_bytes(
    values_zyx: np.ndarray, affine_ras: np.ndarray | None = None, fields: Mapping[str, Any] | None = None
) -> bytes:
    """An uncompressed NIfTI-1; `fields` changes the header's fields."""
    import nibabel as nib

    affine = np.diag([0.7, 0.8, 2.0, 1.0]) if affine_ras is None else affine_ras
    block = nifti_header(values_zyx.shape, values_zyx.dtype, affine)
    header = nib.Nifti1Header(block[:348], check=False)
    for name, value in (fields or {}).items():
        header[name] = value
    return header.binaryblock + bytes(4) + np.ascontiguousarray(values_zyx).tobytes()


def scan(shape: tuple[int, int, int] = (4, 6, 5), *, seed: int = 0, geometry: Geometry | None = None) -> LabelledVolume:
    """Random HU with all three labels, on LPS at 2 x 0.8 x 0.7 mm unless given."""
    rng = np.random.default_rng(seed)
    grid = geometry or Geometry(shape, (2.0, 0.8, 0.7))
    hu = rng.integers(-1024, 1500, grid.shape_zyx).astype(np.int16)
    labels = rng.integers(0, 3, grid.shape_zyx).astype(np.uint8)
    assert sum(label_counts(labels).values()) == hu.size
    return LabelledVolume(Volume(hu, grid), LabelMap(labels, grid))


def zip_folder(folder: Path) -> Path:
    """Replace `folder` by `folder.zip` with a top folder of its own name, as 3DIRCADb is distributed."""
    target = folder.with_name(folder.name + ".zip")
    with zipfile.ZipFile(target, "w") as archive:
        for path in sorted(folder.rglob("*")):
            archive.write(path, Path(folder.name) / path.relative_to(folder))
    shutil.rmtree(folder)
    return target


def tree_hash(root: Path, skip: tuple[str, ...] = ("journal", ".staging")) -> dict[str, str]:
    """Path -> sha256 of every file below `root`, without what may differ between runs."""
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.relative_to(root).parts[0] not in skip
    }


def flip_bit(path: Path, offset: int, bit: int = 0) -> None:
    """Flip one bit of a file; a negative offset counts from the end."""
    data = bytearray(path.read_bytes())
    data[offset] ^= 1 << bit
    path.write_bytes(data)


def write_series(folder: Path, slices: Iterable[bytes]) -> Path:
    """Slices as image_0, image_1 ... in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for k, data in enumerate(slices):
        (folder / f"image_{k}").write_bytes(data)
    return folder


def mask_array(seed: int, shape: tuple[int, int, int] = (4, 6, 5)) -> np.ndarray:
    """A random mask of 0 and 255."""
    return np.random.default_rng(seed).integers(0, 2, shape).astype(np.uint8) * np.uint8(255)


def ircadb_case(root: Path, number: int = 2, masks: Mapping[str, np.ndarray] | None = None) -> Path:
    """A loose 3DIRCADb case of 4 x 6 x 5 voxels; by default with `liver` and `livertumor` (patient 2's)."""
    case = root / f"3Dircadb1.{number}"
    write_series(case / "PATIENT_DICOM", [plain_slice(k) for k in range(4)])
    chosen = {"liver": mask_array(1), "livertumor": mask_array(1) & mask_array(2)} if masks is None else masks
    for name, mask in chosen.items():
        write_series(case / "MASKS_DICOM" / name, [plain_slice(k, mask[k]) for k in range(len(mask))])
    return case


def lits_pair(folder: Path, number: int = 0, *, seed: int = 0, suffix: str = ".nii") -> tuple[Path, Path]:
    """volume-N and segmentation-N of 4 x 6 x 5 voxels with a plain affine."""
    import gzip

    folder.mkdir(parents=True, exist_ok=True)
    volume = scan(seed=seed)
    paths = []
    for name, values in (("volume", volume.image.hu), ("segmentation", volume.label_map.labels)):
        data = nifti_bytes(values)
        path = folder / f"{name}-{number}{suffix}"
        path.write_bytes(gzip.compress(data) if suffix.endswith(".gz") else data)
        paths.append(path)
    return paths[0], paths[1]


def code_of(call: Callable[[], object]) -> str:
    """Code of the SourceError that a call ends with; empty where it ends well. Other errors pass."""
    try:
        call()
    except SourceError as error:
        return error.code
    return ""
