"""3DIRCADb-01: one folder a patient with PATIENT_DICOM and MASKS_DICOM, zipped or loose, nested once or twice."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from livprep.cases import Case, FileRef, Note, Rejection, printable
from livprep.catalog import Catalog, IrcadbCase, MaskRole
from livprep.errors import SourceError
from livprep.formats.archive import read_bytes
from livprep.formats.dicom import Series, read_mask, read_series
from livprep.formats.dicom_header import patient_number
from livprep.formats.hashing import HashingReader
from livprep.labels import Label
from livprep.sources.found import Files, Found, SourceCase, look_at, prefer_loose
from livprep.volume import LabelledVolume, LabelMap, Volume

SPACING_TOLERANCE_MM = 0.001
POSITION_TOLERANCE_MM = 0.01

Grouped = dict[str, list[FileRef]]


def case_id(number: int) -> str:
    """`ircadb-01` for patient 1."""
    return f"ircadb-{number:02d}"


def find(files: Files, catalog: Catalog) -> Found:
    """Group files into patients by folder names; nothing but names is read, unless the number is not in them."""
    scans: dict[tuple[str, ...], Grouped] = defaultdict(lambda: defaultdict(list))
    masks: dict[tuple[str, ...], dict[str, Grouped]] = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    layout = catalog.ircadb.layout
    scan_folder, mask_folder = layout.scan.lower(), layout.masks.lower()
    for parts, ref in files:
        lower = [part.lower() for part in parts]
        if parts[-1].startswith("."):
            continue
        if scan_folder in lower[:-1]:
            scans[parts[: lower.index(scan_folder)]][parts[-1]].append(ref)
        elif mask_folder in lower[:-1]:
            last = len(lower) - 1 - lower[::-1].index(mask_folder)
            if len(parts) == last + 3:  # MASKS_DICOM / name / image_N
                masks[parts[: lower.index(mask_folder)]][parts[last + 1]][parts[-1]].append(ref)
    found = Found()
    for root in sorted(scans.keys() | masks.keys()):
        _add(found, root, scans.get(root, {}), masks.get(root, {}), catalog)
    return found


def _add(found: Found, root: tuple[str, ...], scan: Grouped, masks: dict[str, Grouped], catalog: Catalog) -> None:
    where = printable(root[-1] if root else ".")
    try:
        number = _number(root, scan, catalog)
    except SourceError as error:
        found.rejected.append(Rejection(where, error.code, error.message))
        return
    if number is None or catalog.ircadb.case(number) is None:
        name = where if number is None else case_id(number)
        found.rejected.append(Rejection(name, "CASE_UNKNOWN", f"{where}: no 3DIRCADb-01 patient of the catalogue"))
        return
    if not scan:
        found.rejected.append(Rejection(case_id(number), "SOURCE_MISSING", f"{where}: has no PATIENT_DICOM"))
        return
    listed = catalog.ircadb.case(number)
    assert listed is not None
    used, notes = _choose(case_id(number), masks, catalog)
    missing = [name for name in _required(listed, catalog) if name.lower() not in {key.lower() for key in used}]
    if missing:
        detail = f"{where}: mask folder {', '.join(missing)} is missing; expected in MASKS_DICOM"
        found.rejected.append(Rejection(case_id(number), "MASK_MISSING", detail))
        return
    twice = any(len(refs) > 1 for refs in scan.values())
    if twice:
        notes.append(Note("SOURCE_TWICE", f"{case_id(number)}: PATIENT_DICOM lies there zipped and loose"))
    found.cases.append(
        Case(
            case_id=case_id(number),
            dataset="ircadb",
            number=number,
            image=tuple(prefer_loose(refs) for _, refs in sorted(scan.items())),
            masks=tuple(
                (name, tuple(prefer_loose(refs) for _, refs in sorted(masks[name].items()))) for name in sorted(used)
            ),
            notes=tuple(notes),
        )
    )


def _number(root: tuple[str, ...], scan: Grouped, catalog: Catalog) -> int | None:
    """Patient number from the innermost folder that carries one, else from the scan's header."""
    for part in reversed(root):
        number = catalog.ircadb.layout.case_number(part)
        if number is not None:
            return number
    for refs in scan.values():
        return patient_number(read_bytes(refs[0]))
    return None


def _required(listed: IrcadbCase, catalog: Catalog) -> list[str]:
    roles = catalog.ircadb.masks
    return [*roles.liver, *listed.tumor_masks(roles)]


def _choose(case: str, masks: dict[str, Grouped], catalog: Catalog) -> tuple[list[str], list[Note]]:
    """Names of the masks to unite, and a note on each that looks like tumor but is not used."""
    used, notes = [], []
    for name in sorted(masks):
        role = catalog.ircadb.classify(name)
        if role in (MaskRole.LIVER, MaskRole.TUMOR):
            used.append(name)
        elif role is MaskRole.DISPUTED:
            notes.append(Note("MASK_DISPUTED", f"{case}: mask {name} is not counted as hepatic tumor"))
        elif role is MaskRole.UNLISTED:
            detail = f"{case}: a mask folder that is not in the catalogue is not used"
            notes.append(Note("MASK_UNLISTED", detail, private=name))
    return used, notes


def read(case: Case, catalog: Catalog, reader: HashingReader) -> SourceCase:
    """Read scan and masks; label = tumor where any tumor mask is set, else liver where the liver mask is set."""
    scan = read_series(reader, "image", case.image)
    notes = [*case.notes, *scan.notes]
    listed = catalog.ircadb.case(case.number)
    labels = np.zeros(scan.geometry.shape_zyx, dtype=np.uint8)
    outside = 0
    roles = {name: catalog.ircadb.classify(name) for name, _ in case.masks}
    for name, refs in sorted(case.masks, key=lambda entry: roles[entry[0]] is not MaskRole.LIVER):  # liver first
        label = Label.LIVER if roles[name] is MaskRole.LIVER else Label.TUMOR
        for inside, section in zip(_mask(case, name, refs, scan, listed, reader), labels, strict=True):
            if inside.any():
                if label is Label.TUMOR:
                    outside += int(np.count_nonzero(section[inside] == Label.BACKGROUND))
                section[inside] = label
    if outside:
        notes.append(Note("MASK_OUTSIDE_LIVER", f"{case.case_id}: {outside} tumor voxels lie outside the liver mask"))
    if listed is not None:
        notes.extend(_compare(case, listed, scan))
    volume = LabelledVolume(Volume(scan.hu, scan.geometry), LabelMap(labels, scan.geometry))
    look = look_at(case.case_id, volume, notes)
    return SourceCase(
        case=case,
        patient=catalog.patient_of(case.case_id),
        volume=volume,
        header_affine_ras=scan.geometry.affine_ras,
        notes=(*notes, *look.notes),
        repairs=(),
        look=look,
        digest=reader.digest(),
        bytes_in=reader.bytes_read,
    )


def _mask(
    case: Case, name: str, refs: Sequence[FileRef], scan: Series, listed: IrcadbCase | None, reader: HashingReader
) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
    series = read_mask(reader, name, refs)
    if series.values.shape != scan.hu.shape:
        slices = len(series.values)
        if (
            listed is not None
            and listed.slices == slices > len(scan.hu)
            and series.values.shape[1:] == scan.hu.shape[1:]
        ):
            raise SourceError(
                "SERIES_INCOMPLETE",
                f"{case.case_id}: {len(scan.hu)} slices, expected {slices} as in mask {name} and the catalogue",
            )
        raise SourceError(
            "MASK_SHAPE",
            f"{case.case_id}: mask {name} has {series.values.shape} voxels (zyx), the scan {scan.hu.shape}",
        )
    if not np.allclose(series.geometry.affine_lps, scan.geometry.affine_lps, rtol=0, atol=POSITION_TOLERANCE_MM):
        raise SourceError("MASK_GEOMETRY", f"{case.case_id}: mask {name} lies elsewhere than the scan")
    return series.values


def _compare(case: Case, listed: IrcadbCase, scan: Series) -> list[Note]:
    """Say where the scan is not what the catalogue knows of this patient.

    Another spacing means another copy, of which nothing is known. At the patient's own spacing fewer slices than the
    catalogue's are lost ones, even where scan and masks lack the same; InstanceNumber (from 0 in every folder) and
    the position cannot show that the last is gone.

    Raises
    ------
    SourceError
        SERIES_INCOMPLETE: slices were lost.
    """
    notes = []
    slices = scan.geometry.shape_zyx[0]
    copy = not np.allclose(listed.spacing_mm, scan.geometry.spacing_mm, rtol=0, atol=SPACING_TOLERANCE_MM)
    if slices < listed.slices and not copy:
        raise SourceError(
            "SERIES_INCOMPLETE",
            f"{case.case_id}: {slices} slices in scan and masks, the catalogue counts {listed.slices} at this spacing; "
            "if that is meant, pass a --catalog that counts them so",
        )
    if listed.slices != slices:
        notes.append(Note("CATALOG_MISMATCH", f"{case.case_id}: {slices} slices, the catalogue says {listed.slices}"))
    if copy:
        notes.append(
            Note(
                "CATALOG_MISMATCH",
                f"{case.case_id}: spacing {scan.geometry.spacing_mm} mm (zyx), the catalogue says {listed.spacing_mm}",
            )
        )
    return notes
