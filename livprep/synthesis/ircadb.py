"""Synthetic patients in the layout and with the quirks of 3DIRCADb (datasets.md, A)."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from livprep.catalog import IrcadbCase, IrcadbLayout, MaskRole, MaskRoles
from livprep.formats.dicom_write import Element, SeriesHeader, Tag, uid_from
from livprep.phantom import Organ, Phantom
from livprep.phantom.anatomy import BoolArray
from livprep.synthesis.plan import Counts, counts_of

ZIP_TIME = (2009, 5, 27, 12, 0, 0)
"""Time of all zip entries, fixed so that the bytes follow from the seed alone."""

_BOTH_LUNGS = (Organ.LUNG_RIGHT, Organ.LUNG_LEFT, Organ.LUNG_VESSEL)
_KIDNEY_LEFT = (Organ.KIDNEY_LEFT, Organ.MEDULLA_LEFT)
_KIDNEY_RIGHT = (Organ.KIDNEY_RIGHT, Organ.MEDULLA_RIGHT)
_PORTAL = (Organ.PORTAL, Organ.PORTAL_IN_LIVER)

_ORGANS: dict[str, tuple[int, ...]] = {
    "artery": (Organ.ARTERY,), "biliarysystem": (Organ.GALLBLADDER, Organ.STONE),
    "bone": (Organ.CORTEX, Organ.MARROW), "colon": (Organ.BOWEL, Organ.BOWEL_GAS),
    "gallbladder": (Organ.GALLBLADDER, Organ.STONE), "heart": (Organ.HEART,),
    "kidneys": (*_KIDNEY_LEFT, *_KIDNEY_RIGHT), "leftkidney": _KIDNEY_LEFT, "rightkidney": _KIDNEY_RIGHT,
    "leftlung": (Organ.LUNG_LEFT,), "rightlung": (Organ.LUNG_RIGHT,), "lungs": _BOTH_LUNGS,
    "leftsurrenalgland": (Organ.ADRENAL_LEFT,), "rightsurrenalgland": (Organ.ADRENAL_RIGHT,),
    "surrenalgland": (Organ.ADRENAL_LEFT, Organ.ADRENAL_RIGHT),
    "leftsurretumor": (Organ.ADRENAL_TUMOR_LEFT,), "rightsurretumor": (Organ.ADRENAL_TUMOR_RIGHT,),
    "tumor": (Organ.ADRENAL_TUMOR_LEFT,), "liverkyst": (Organ.CYST,), "liverkyste": (Organ.CYST,),
    "livercyst": (Organ.CYST,), "metastasectomie": (Organ.SCAR,), "metal": (Organ.METAL,),
    "pancreas": (Organ.PANCREAS,), "portalvein": _PORTAL, "portalvein1": _PORTAL,
    "smallintestin": (Organ.BOWEL,), "spleen": (Organ.SPLEEN,), "stones": (Organ.STONE,),
    "stomach": (Organ.STOMACH, Organ.STOMACH_GAS), "venacava": (Organ.VENA_CAVA,),
    "venoussystem": (Organ.VENA_CAVA, Organ.HEPATIC_VEIN),
}  # fmt: skip
"""Organs behind a mask name; names that are missing (bladder, uterus) lie below the scan: their masks are empty."""

_ONE_VALUED: dict[int, tuple[str, ...]] = {
    2: ("bone", "gallbladder", "liver", "livertumor", "skin"),
    3: ("bone", "leftlung", "rightlung", "metal", "portalvein", "skin", "spleen", "venacava"),
    7: ("skin",),
    11: ("skin",),
    12: ("artery", "bone", "portalvein", "skin", "venacava", "liver"),
    18: ("bone", "gallbladder", "liver", "livertumor", "skin"),
}
"""Masks that hold 1 instead of 255, by patient (datasets.md, A.4)."""

_MIXED: dict[tuple[int, str], tuple[int, int]] = {
    (8, "livertumor01"): (1, 1),
    (11, "artery"): (1, 1),
    (12, "liver"): (4, 255),
    (14, "portalvein"): (102, 1),
}
"""How many voxels of a mask hold the other value, and that value."""


def write_case(
    folder: Path, phantom: Phantom, case: IrcadbCase, layout: IrcadbLayout, roles: MaskRoles, seed: int
) -> Counts:
    """Write one patient into a data set's folder as `3Dircadb1.N`; returns its voxel counts.

    The nesting follows the number, so that every form on users' disks occurs: N % 4 = 1 zips as distributed,
    2 loose, 3 loose and nested twice, 0 loose scan with zipped masks.
    """
    target = folder / layout.case_folder.format(n=case.number)
    target.mkdir(parents=True)
    left_out = outside_count(phantom, case)
    scan = ((f"image_{k}", data) for k, data in _series(phantom.hu, case, "patient", phantom.geometry.spacing_mm, seed))
    masks = _mask_files(phantom, case, roles, _outside_liver(phantom, left_out), seed)
    form = case.number % 4
    write = _write_zip if form == 1 else _write_nested if form == 3 else _write_loose
    write(target, layout.scan, scan)
    (_write_zip if form == 0 else write)(target, layout.masks, masks)
    return counts_of(phantom, left_out)


def outside_count(phantom: Phantom, case: IrcadbCase) -> int:
    """How many tumor voxels the liver mask leaves out (patients 4 and 10), at most a quarter of the tumor."""
    return min(case.tumor_outside_liver, int(phantom.tumors().sum()) // 4)


def _outside_liver(phantom: Phantom, count: int) -> BoolArray:
    outside = np.zeros(phantom.organs.shape, dtype=np.bool_)
    if count:
        outside.reshape(-1)[np.flatnonzero(phantom.tumors())[:count]] = True
    return outside


def mask_of(name: str, phantom: Phantom, case: IrcadbCase, roles: MaskRoles) -> BoolArray:
    """Voxels `(z, y, x)` bool of a mask folder of this patient."""
    key = name.casefold()
    if key == "skin":
        return phantom.body()
    if roles.listed.get(key) is MaskRole.LIVER:
        return phantom.liver()
    if roles.listed.get(key) is MaskRole.TUMOR:
        tumors = [other for other in case.masks if roles.listed.get(other.casefold()) is MaskRole.TUMOR]
        return phantom.tumors() if len(tumors) == 1 else phantom.tumor(tumors.index(name))
    return phantom.mask(*_ORGANS.get(key, ()))


def _mask_files(
    phantom: Phantom, case: IrcadbCase, roles: MaskRoles, outside: BoolArray, seed: int
) -> Iterator[tuple[str, bytes]]:
    for name in case.masks:
        mask = mask_of(name, phantom, case, roles)
        if roles.listed.get(name.casefold()) is MaskRole.LIVER:
            mask = mask & ~outside
        values = _values(mask, case.number, name.casefold())
        yield f"{name}/", b""
        for k, data in _series(values, case, name, phantom.geometry.spacing_mm, seed):
            yield f"{name}/image_{k}", data


def _values(mask: BoolArray, number: int, key: str) -> npt.NDArray[np.uint8]:
    value = 1 if key in _ONE_VALUED.get(number, ()) else 255
    values = mask.astype(np.uint8) * np.uint8(value)
    if (number, key) in _MIXED:
        count, other = _MIXED[number, key]
        inside = np.flatnonzero(mask)
        values.reshape(-1)[inside[len(inside) // 2 :][:count]] = other
    return values


def _series(
    array: npt.NDArray[np.generic], case: IrcadbCase, what: str, spacing_mm: tuple[float, float, float], seed: int
) -> Iterator[tuple[int, bytes]]:
    """DICOM files of one folder with the header of datasets.md, A.3, in slice order."""
    # The text form of float32 values, with their tails and beyond the 16 characters of a decimal string.
    slice_mm, pixel_mm = float(np.float32(spacing_mm[0])), float(np.float32(spacing_mm[2]))
    pixel_text = f"{pixel_mm:.15g}"
    identity = (seed, array.shape, case.number, what)
    shared: dict[Tag, Element] = {
        (0x0008, 0x0008): ("CS", "ORIGINAL\\PRIMARY"),
        (0x0008, 0x0020): ("DA", "20090527"),
        (0x0008, 0x0060): ("CS", "CT"),
        (0x0008, 0x0090): ("PN", ""),
        (0x0010, 0x0010): ("PN", f"liver_{case.number:02d}^{what}"),
        (0x0010, 0x0020): ("LO", ""),
        (0x0010, 0x0030): ("DA", "20090527"),
        (0x0010, 0x0040): ("CS", "M"),
        (0x0018, 0x0050): ("DS", f"{slice_mm:.17g}"),
        (0x0018, 0x0088): ("DS", f"{slice_mm:.17g}"),
        # Study and series differ in every folder, also between a scan and its masks.
        (0x0020, 0x000D): ("UI", uid_from("study", *identity)),
        (0x0020, 0x000E): ("UI", uid_from("series", *identity)),
        (0x0020, 0x0010): ("SH", ""),
        (0x0020, 0x0011): ("IS", ""),
        (0x0020, 0x0037): ("DS", "1\\0\\0\\0\\1\\0"),
        (0x0028, 0x0030): ("DS", f"{pixel_text}\\{pixel_text}"),
        (0x0028, 0x1050): ("DS", "0"),
        (0x0028, 0x1051): ("DS", "0"),
        (0x0028, 0x1052): ("DS", "0"),
        (0x0028, 0x1053): ("DS", "1"),
    }
    header = SeriesHeader(shared)
    for k in range(len(array)):
        own: dict[Tag, Element] = {
            (0x0020, 0x0013): ("IS", str(k)),
            (0x0020, 0x0032): ("DS", f"0\\0\\{k * slice_mm:.14g}"),
        }
        yield k, header.slice_bytes(uid_from("slice", *identity, k), own, array[k])


def _write_loose(target: Path, name: str, files: Iterator[tuple[str, bytes]]) -> None:
    folder = target / name
    folder.mkdir(parents=True)
    for path, data in files:
        if path.endswith("/"):
            (folder / path).mkdir()
        else:
            (folder / path).write_bytes(data)


def _write_nested(target: Path, name: str, files: Iterator[tuple[str, bytes]]) -> None:
    """As after "extract to a folder of that name", and seen by a Mac."""
    _write_loose(target / name, name, files)
    (target / name / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")


def _write_zip(target: Path, name: str, files: Iterator[tuple[str, bytes]]) -> None:
    """A zip with a top folder of its own name and explicit directory entries, in the order of the names."""
    with zipfile.ZipFile(target / f"{name}.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=2) as archive:
        for path, data in (("", b""), *files):
            info = zipfile.ZipInfo(f"{name}/{path}", ZIP_TIME)
            info.compress_type = zipfile.ZIP_STORED if info.is_dir() else zipfile.ZIP_DEFLATED
            info.external_attr = 0o40755 << 16 | 0x10 if info.is_dir() else 0o100644 << 16
            archive.writestr(info, data)
