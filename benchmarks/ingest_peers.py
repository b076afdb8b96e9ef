"""What others spend on the same case: nnU-Net's preprocessing, and the plain way with SimpleITK or nibabel and zarr.

Each function does one case whole, from the files to the files. The plain way writes the arrays that ours does, HU,
labels and packed, with the same chunks and codecs through zarr-python; it checks, hashes and indexes nothing.
nnU-Net reads a .nii.gz pair in either case: the conversion from DICOM that it needs first is not counted.
"""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

Interpolation = Literal["linear", "bspline"]


@dataclass(frozen=True)
class Files:
    """Where a case lies: its own form, and the same case as .nii.gz pair (`image`, `label`).

    `scan` is the zip of a DICOM series or a NIfTI file, `masks` the zip of mask series or the NIfTI of labels.
    """

    scan: Path
    masks: Path
    image: Path
    label: Path


def nnunet(files: Files, spacing_yx_mm: float | None, out: Path, save: bool) -> None:
    """`DefaultPreprocessor.run_case`, and with `save` the rest of `run_case_save`, by a 3d_fullres plan."""
    from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    from benchmarks.peers import nnunet as peer

    x, y, z = _spacing_xyz(files.image)
    spacing = (z, spacing_yx_mm or y, spacing_yx_mm or x)
    # LiTS' own intensities; the values do not change the work
    plan = peer.plan(
        spacing, (128, 128, 128), {"mean": 99.5, "std": 37.1, "percentile_00_5": -15, "percentile_99_5": 197}
    )
    plans = PlansManager(plan)
    preprocessor, settings = DefaultPreprocessor(verbose=False), plans.get_configuration("3d_fullres")
    case: tuple[Any, ...] = ([str(files.image)], str(files.label), plans, settings, peer.DATASET)
    if save:
        preprocessor.run_case_save(str(out / "case"), *case)
    else:
        preprocessor.run_case(*case)


def plain(
    files: Files, spacing_yx_mm: float | None, out: Path, reader: Literal["SimpleITK", "nibabel"], how: Interpolation
) -> None:
    """Read with SimpleITK (DICOM, NIfTI) or nibabel (NIfTI), resample with SimpleITK, write with zarr-python."""
    import SimpleITK as sitk

    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    if reader == "nibabel":
        hu, labels = _with_nibabel(files.scan, np.int16), _with_nibabel(files.masks, np.uint8)
    elif files.scan.suffix == ".zip":
        hu, labels = _dicom(files, out)
    else:
        hu = sitk.ReadImage(str(files.scan), sitk.sitkInt16)
        labels = sitk.ReadImage(str(files.masks), sitk.sitkUInt8)
    hu, labels = sitk.DICOMOrient(hu, "LPS"), sitk.DICOMOrient(labels, "LPS")
    for image in (hu, labels):
        image.SetSpacing(_spacing_xyz(files.image))  # LiTS 28's own header says 1 mm along every axis
    if spacing_yx_mm is not None:
        cubic = sitk.sitkBSpline if how == "bspline" else sitk.sitkLinear
        hu = _resample(hu, spacing_yx_mm, cubic)
        labels = _resample(labels, spacing_yx_mm, sitk.sitkNearestNeighbor)
    _write(sitk.GetArrayViewFromImage(hu), sitk.GetArrayViewFromImage(labels), out)


def _spacing_xyz(path: Path) -> tuple[float, float, float]:
    import SimpleITK as sitk

    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    x, y, z = reader.GetSpacing()
    return x, y, z


def _with_nibabel(path: Path, dtype: type[np.generic]) -> Any:
    """A NIfTI as SimpleITK image: its affine is RAS, ITK's LPS."""
    import nibabel
    import SimpleITK as sitk

    loaded = nibabel.load(path)
    values = np.asanyarray(loaded.dataobj).astype(dtype, copy=False)
    image = sitk.GetImageFromArray(np.ascontiguousarray(values.transpose()))
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ loaded.affine
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetOrigin(affine[:3, 3].tolist())
    image.SetDirection((affine[:3, :3] / spacing).ravel().tolist())
    return image


def _dicom(files: Files, out: Path) -> tuple[Any, Any]:
    """Scan, and liver and tumors as labels 1 and 2, from zips that are extracted first."""
    import SimpleITK as sitk

    with zipfile.ZipFile(files.scan) as archive:
        archive.extractall(out)
    with zipfile.ZipFile(files.masks) as archive:
        wanted = [name for name in archive.namelist() if name.split("/")[1].startswith(("liver", "livertumor"))]
        archive.extractall(out, [name for name in wanted if "kyst" not in name])
    scan = _series(out / "PATIENT_DICOM")
    union: Any = None
    for folder in sorted((out / "MASKS_DICOM").iterdir(), key=lambda path: path.name != "liver"):
        mask = sitk.GetArrayViewFromImage(_series(folder)) != 0
        if union is None:
            union = mask.astype(np.uint8)
        else:
            union[mask] = 2
    labels = sitk.GetImageFromArray(union)
    labels.CopyInformation(scan)
    return sitk.Cast(scan, sitk.sitkInt16), labels


def _series(folder: Path) -> Any:
    import SimpleITK as sitk

    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    return reader.Execute()


def _resample(image: Any, spacing_yx_mm: float, interpolation: int) -> Any:
    import SimpleITK as sitk

    x, y, z = image.GetSpacing()
    wanted = (spacing_yx_mm, spacing_yx_mm, z)
    size = [max(1, round(n * old / new)) for n, old, new in zip(image.GetSize(), (x, y, z), wanted, strict=True)]
    low = float(np.min(sitk.GetArrayViewFromImage(image)))
    return sitk.Resample(
        image, size, sitk.Transform(), interpolation, image.GetOrigin(), wanted, image.GetDirection(), low,
        image.GetPixelID(),
    )  # fmt: skip


def _write(hu: np.ndarray, labels: np.ndarray, out: Path) -> None:
    """The three arrays of a case with our chunks and codecs."""
    import zarr
    from zarr.codecs import BloscCodec, Crc32cCodec

    packed = (np.clip(hu, -1024, 3071) + 1024).astype(np.uint16) | labels.astype(np.uint16) << 12
    inner = (64, 64, 64)
    arrays: Sequence[tuple[str, np.ndarray]] = (("hu", hu), ("labels", labels), ("packed", packed))
    for name, values in arrays:
        shuffle = "shuffle" if values.itemsize > 1 else "noshuffle"
        codec = BloscCodec(typesize=values.itemsize, cname="lz4hc", clevel=5, shuffle=shuffle, blocksize=16384)
        array = zarr.create_array(
            store=out / f"{name}.zarr",
            shape=values.shape,
            dtype=values.dtype,
            chunks=inner,
            shards=tuple(-(-size // step) * step for size, step in zip(values.shape, inner, strict=True)),
            compressors=[codec, Crc32cCodec()],
            filters=None,
            fill_value=0,
        )
        array[...] = values
