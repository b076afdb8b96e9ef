"""Look at sources without a store: every series and volume, its geometry, HU range and findings."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from livprep.cases import FileRef
from livprep.catalog import load_catalog
from livprep.errors import GeometryError, SourceError
from livprep.prepare import Preparation, prepare
from livprep.sources import discover, read_case

_NOTHING: dict[str, Any] = {
    "code": "", "detail": "", "shape_zyx": None, "spacing_mm": None, "orientation": None, "hu_min": None,
    "hu_max": None, "hu_sha256": None, "warnings": [],
}  # fmt: skip


def inspect_sources(paths: Sequence[Path]) -> Iterator[dict[str, Any]]:
    """Yield one record (commands.md, `inspect --json`) for each series or NIfTI under `paths`.

    `hu_sha256` is of the int16 HU array in LPS order, C-contiguous (z, y, x), little endian.

    Raises
    ------
    SourceError
        NOTHING_FOUND: nothing readable lies there; SOURCE_MISSING or ARCHIVE_….
    """
    catalog = load_catalog()
    found = discover(paths, catalog, "any")
    if not found.cases and not found.rejected and not found.ignored:
        raise SourceError("NOTHING_FOUND", f"{', '.join(map(str, paths))}: no CT series and no NIfTI")
    for status, entries in (("rejected", found.rejected), ("ignored", found.ignored)):
        for entry in entries:
            known = {"path": entry.case_id, "kind": "dicom", "status": status}
            yield _NOTHING | known | {"code": entry.code, "detail": entry.detail}
    for case in found.cases:
        ref = case.image[0]
        record = {
            "path": str(ref) if len(case.image) == 1 else _folder(case.image),
            "kind": "nifti" if ref.name.lower().endswith((".nii", ".nii.gz")) else "dicom",
            "status": "ok",
        } | _NOTHING
        try:
            source = read_case(case, catalog)
            image = prepare(source.volume, Preparation()).image
        except (SourceError, GeometryError) as error:
            yield record | {"status": "rejected", "code": error.code, "detail": error.message}
            continue
        yield record | {
            "shape_zyx": list(source.volume.geometry.shape_zyx),
            "spacing_mm": list(source.volume.geometry.spacing_mm),
            "orientation": source.volume.geometry.orientation,
            "hu_min": int(image.hu.min()),
            "hu_max": int(image.hu.max()),
            "hu_sha256": hashlib.sha256(image.hu.astype("<i2", copy=False).tobytes()).hexdigest(),
            "warnings": list(dict.fromkeys(note.code for note in source.notes)),
        }


def _folder(refs: Sequence[FileRef]) -> str:
    """The innermost folder or zip that holds all files."""
    return os.path.commonpath([str(ref).rpartition("/")[0] for ref in refs]).removesuffix("!")
