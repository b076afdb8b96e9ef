"""Scans of no known data set: every CT series of a folder and every NIfTI is a case of its own, without labels."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

from livprep.cases import Case, FileRef, Rejection, printable
from livprep.catalog import Catalog
from livprep.errors import SourceError
from livprep.formats.archive import Parts, read_bytes, read_start
from livprep.formats.dicom import read_series
from livprep.formats.dicom_header import DICOM_START_BYTES, SeriesKey, begins_like_dicom, peek
from livprep.formats.hashing import HashingReader
from livprep.formats.nifti import read_nifti, to_hu
from livprep.sources.found import Files, Found, SourceCase, look_at
from livprep.sources.series import group
from livprep.volume import LabelledVolume, Volume

_NIFTI = re.compile(r"(.+?)\.nii(\.gz)?", re.IGNORECASE)
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")


def find(files: Files, catalog: Catalog) -> Found:
    """Take NIfTI files by name, and group everything else that is DICOM into series.

    Series of another modality, localizers and screen captures are ignored; a folder with files that cannot be
    opened is rejected once.
    """
    found = Found()
    slices: list[tuple[Parts, FileRef, SeriesKey]] = []
    ignored: dict[tuple[Parts, str], Rejection] = {}
    faulty: dict[Parts, Rejection] = {}
    taken: set[str] = set()
    for parts, ref in files:
        match = _NIFTI.fullmatch(parts[-1])
        if match:
            found.cases.append(Case(_unique(match[1], taken), "any", -1, (ref,)))
            continue
        where = printable(str(Path(*parts[:-1])))
        try:
            # Whatever lies in the folder is looked at, videos and disk images too.
            key = peek(ref, read_bytes(ref)) if begins_like_dicom(read_start(ref, DICOM_START_BYTES)) else None
        except SourceError as error:
            faulty.setdefault(parts[:-1], Rejection(where, error.code, error.message))
            continue
        if key is not None and key.modality == "CT" and key.placed:
            slices.append((parts[:-1], ref, key))
        elif key is not None:
            reason = "a screen capture or page of text, no slice" if key.modality == "CT" else "the modality is not CT"
            ignored[parts[:-1], key.uid] = Rejection(where, "", reason)
    groups = []
    for entry in group(slices):
        if all(key.localizer for _, key in entry.slices):
            where = printable(str(Path(*entry.folder)))
            ignored[entry.folder, entry.slices[0][1].uid] = Rejection(where, "", "localizers, no slices")
        else:
            groups.append(entry)
    found.rejected, found.ignored = list(faulty.values()), list(ignored.values())
    counts = Counter(entry.folder for entry in groups)
    numbers: Counter[Parts] = Counter()
    for entry in groups:
        numbers[entry.folder] += 1
        stem = entry.folder[-1] if entry.folder else "series"
        if counts[entry.folder] > 1:
            stem = f"{stem}-{numbers[entry.folder]}"
        found.cases.append(Case(_unique(stem, taken), "any", -1, entry.refs, notes=entry.notes))
    return found


def safe_stem(stem: str) -> str:
    """A stem with `_` for whatever is no letter, digit, dot, underscore or hyphen of ASCII."""
    return _UNSAFE.sub("_", stem).lstrip(".") or "scan"


def _unique(stem: str, taken: set[str]) -> str:
    """A file-name-safe id that no other case of this discovery has."""
    base = safe_stem(stem)
    name, count = base, 1
    while name in taken:
        count += 1
        name = f"{base}-{count}"
    taken.add(name)
    return name


def read(case: Case, reader: HashingReader) -> SourceCase:
    """Read a scan without labels."""
    ref = case.image[0]
    if len(case.image) == 1 and _NIFTI.fullmatch(ref.name):
        image = read_nifti(ref, reader.read("image", ref))
        volume, affine, notes = Volume(to_hu(ref, image), image.geometry), image.affine_ras, image.notes
    else:
        series = read_series(reader, "image", case.image)
        volume, affine, notes = Volume(series.hu, series.geometry), series.geometry.affine_ras, series.notes
    labelled = LabelledVolume(volume)
    look = look_at(case.case_id, labelled, notes)
    return SourceCase(
        case=case,
        patient=case.case_id,
        volume=labelled,
        header_affine_ras=affine,
        notes=(*case.notes, *notes, *look.notes),
        repairs=(),
        look=look,
        digest=reader.digest(),
        bytes_in=reader.bytes_read,
    )
