"""3DIRCADb trees, NIfTI pairs and archives with one fault each; a tiny case of 4 x 6 x 5 voxels, made in a folder."""

from __future__ import annotations

import gzip
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from building import edited, flip_bit, ircadb_case, lits_pair, mask_array, nifti_bytes, plain_slice, scan, zip_folder
from building import write_series as written

Build = Callable[[Path], None]


# --- 3DIRCADb ---------------------------------------------------------------------------------------------------


def tree(change: Callable[[Path], Any], number: int = 2) -> Build:
    """A case of 3DIRCADb after `change`, which gets its folder."""

    def build(folder: Path) -> None:
        case = ircadb_case(folder, number)
        change(case)

    return build


def scan_slice(k: int, **changes: Any) -> Build:
    def change(case: Path) -> None:
        path = case / "PATIENT_DICOM" / f"image_{k}"
        path.write_bytes(edited(path.read_bytes(), **changes))

    return tree(change)


def without(*names: str) -> Build:
    """A case that lacks files or folders."""

    def change(case: Path) -> None:
        for name in names:
            path = case / name
            for file in [path] if path.is_file() else list(path.iterdir()):
                file.unlink()
            if path.is_dir():
                path.rmdir()

    return tree(change)


def mask(pixels: np.ndarray, name: str = "livertumor", **changes: Any) -> Build:
    def change(case: Path) -> None:
        for file in (case / "MASKS_DICOM" / name).glob("*"):
            file.unlink()
        slices = [edited(plain_slice(k, pixels[k]), **changes) for k in range(len(pixels))]
        written(case / "MASKS_DICOM" / name, slices)

    return tree(change)


def valued(value: int) -> np.ndarray:
    pixels = mask_array(2)
    pixels[2, 3, 4] = value
    return pixels


def zipped(change: Callable[[Path], Any], name: str = "PATIENT_DICOM") -> Build:
    """A case whose scan or masks are zipped, after `change` of the zip."""
    return tree(lambda case: change(zip_folder(case / name)))


def flip_inside(archive: Path) -> None:
    flip_bit(archive, archive.read_bytes().index(b"DICM") + 200)


def both(case: Path) -> None:
    slices = {path.name: path.read_bytes() for path in (case / "PATIENT_DICOM").iterdir()}
    zip_folder(case / "PATIENT_DICOM")
    for name, data in slices.items():
        path = case / "PATIENT_DICOM" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)


def twice(folder: Path) -> None:
    ircadb_case(folder / "a")
    ircadb_case(folder / "b")


# --- LiTS -------------------------------------------------------------------------------------------------------


def volume(data: Callable[[np.ndarray], bytes], name: str = "volume-0.nii") -> Build:
    """A pair of LiTS whose volume holds `data(hu)`."""

    def build(folder: Path) -> None:
        lits_pair(folder)
        (folder / "volume-0.nii").unlink()
        (folder / name).write_bytes(data(scan().image.hu))

    return build


def label(data: Callable[[np.ndarray], bytes]) -> Build:
    """A pair of LiTS whose segmentation holds `data(labels)`."""

    def build(folder: Path) -> None:
        lits_pair(folder)
        (folder / "segmentation-0.nii").write_bytes(data(scan().label_map.labels))

    return build


def fields(**values: Any) -> Callable[[np.ndarray], bytes]:
    """The array with header fields set."""
    return lambda array: nifti_bytes(array, fields=values)


def affine(change: Callable[[np.ndarray], Any], **values: Any) -> Callable[[np.ndarray], bytes]:
    """The array with a changed sform; pixdim stays."""

    def data(array: np.ndarray) -> bytes:
        matrix = np.diag([0.7, 0.8, 2.0, 1.0])
        change(matrix)
        rows = {f"srow_{axis}": row for axis, row in zip("xyz", matrix, strict=False)}
        return nifti_bytes(array, fields={**rows, "sform_code": 1, **values})

    return data


def zipped_gzip(change: Callable[[bytes], bytes]) -> Build:
    return volume(lambda hu: change(gzip.compress(nifti_bytes(hu), mtime=0)), "volume-0.nii.gz")


def flipped(data: bytes, offset: int) -> bytes:
    changed = bytearray(data)
    changed[offset] ^= 1
    return bytes(changed)


def pair(number: int, *, remove: str = "") -> Build:
    def build(folder: Path) -> None:
        lits_pair(folder, number)
        if remove:
            (folder / f"{remove}-{number}.nii").unlink()

    return build


def body(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """HU and labels `(16, 40, 40)`: a noisy body of fat and soft tissue with a liver, in air; corners padded."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:40, :40] - 19.5
    inside, deep, liver = (x / 17) ** 2 + (y / 13) ** 2 < 1, (x / 14) ** 2 + (y / 10) ** 2 < 1, (x + 6) ** 2 + y**2 < 40
    mean = np.select([liver, deep, inside], [105, 45, -100], -1000)
    hu = np.rint(mean + rng.normal(0, 12, (16, 40, 40))).astype(np.int16)
    hu[:, x**2 + y**2 > 26**2] = -1024
    return hu, np.broadcast_to(liver, hu.shape).astype(np.uint8)


def valued_otherwise(change: Callable[[np.ndarray], np.ndarray], labels: Callable[..., Any] = lambda a: a) -> Build:
    """A pair of LiTS of a body whose HU, or labels, went through `change`."""

    def build(folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        hu, label_values = body()
        (folder / "volume-0.nii").write_bytes(nifti_bytes(np.asarray(change(hu), dtype=np.int16)))
        (folder / "segmentation-0.nii").write_bytes(nifti_bytes(np.ascontiguousarray(labels(label_values))))

    return build


def corners(value: int) -> Callable[[np.ndarray], np.ndarray]:
    """Padding of another value."""
    return lambda hu: np.where(hu == -1024, value, hu)


def some(value: int, every: int) -> Callable[[np.ndarray], np.ndarray]:
    """Every n-th voxel of the body set to a value."""

    def change(hu: np.ndarray) -> np.ndarray:
        spoiled = hu.copy()
        spoiled.reshape(-1)[np.flatnonzero(hu > -500)[::every]] = value
        return spoiled

    return change


def identity(folder: Path) -> None:
    identity_of(28)(folder)


def identity_of(number: int) -> Build:
    def build(folder: Path) -> None:
        lits_pair(folder, number)
        volume = scan()
        for name, values in (("volume", volume.image.hu), ("segmentation", volume.label_map.labels)):
            (folder / f"{name}-{number}.nii").write_bytes(nifti_bytes(values, np.eye(4)))

    return build


def exchanged(folder: Path) -> None:
    """Test volume 59: the file's second axis counts the slices."""
    folder.mkdir(parents=True, exist_ok=True)
    data = nifti_bytes(scan((6, 9, 6)).image.hu, np.diag([0.7, 0.7, 3.0, 1.0]))
    (folder / "test-volume-59.nii").write_bytes(data)


# --- archives ---------------------------------------------------------------------------------------------------


def archived(write: Callable[[zipfile.ZipFile], Any], name: str = "scan.zip") -> Build:
    """A zip as `write` fills it."""

    def build(folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(folder / name, "w", zipfile.ZIP_DEFLATED) as archive:
            write(archive)

    return build


def nested(folder: Path) -> None:
    """A NIfTI below five zips."""
    folder.mkdir(parents=True, exist_ok=True)
    inner, data = "volume-0.nii", nifti_bytes(scan().image.hu)
    for depth in range(5):
        path = folder / f"{depth}.zip"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(inner, data)
        inner, data = path.name, path.read_bytes()
        if depth < 4:
            path.unlink()


def lying_bomb(folder: Path) -> None:
    """The entry claims that its few bytes expand to 4 GiB."""
    archived(lambda archive: archive.writestr("test-volume-0.nii", bytes(1000)))(folder)
    path = folder / "scan.zip"
    data = bytearray(path.read_bytes())
    at = data.rindex(b"PK\1\2")
    data[at + 24 : at + 28] = b"\xfe\xff\xff\xff"  # uncompressed size (APPNOTE 4.3.12)
    path.write_bytes(data)
