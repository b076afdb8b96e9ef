"""Croissant 1.0 (MLCommons' description of data sets, JSON-LD) over plain NIfTI and its table.

`croissant.json` lists every file with its sha256, so that a reader can check what it has; its record set `cases` is the
table. The `@context` is the one that the specification prints (https://docs.mlcommons.org/croissant/docs/).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from livprep.export import plain
from livprep.export.cohort import Cohort, ExportedCase
from livprep.export.staging import write_json

FILE = "croissant.json"
_STEP = 1 << 20
_FLOATS, _INTEGERS = ("spacing_z_mm", "spacing_y_mm", "spacing_x_mm"), ("slices", "rows", "columns")


def write(cohort: Cohort, folder: Path, name: str) -> Iterator[ExportedCase]:
    """Write plain NIfTI with its table, and the description beside."""
    written = []
    for entry in plain.write(cohort, folder, name):
        written.append(entry)
        yield entry
    table = _file(folder, plain.TABLE, "text/csv", "One line a case.")
    images = [_file(folder, entry.image, "application/gzip", "CT in HU, int16 NIfTI.") for entry in written]
    labels = [
        _file(folder, entry.label, "application/gzip", "Labels: 0 background, 1 liver, 2 tumor; uint8 NIfTI.")
        for entry in written
        if entry.label
    ]
    write_json(
        folder / FILE,
        {
            "@context": _context(),
            "@type": "sc:Dataset",
            "conformsTo": "http://mlcommons.org/croissant/1.0",
            "name": name,
            "description": f"{len(written)} CT scans with liver and liver tumor as NIfTI, in LPS order.",
            "license": cohort.license,
            "version": "1.0.0",
            "distribution": [table, *images, *labels],
            "recordSet": [_record_set()],
        },
    )


def _file(folder: Path, name: str, kind: str, about: str) -> dict[str, Any]:
    path = folder / name
    return {
        "@type": "cr:FileObject",
        "@id": name,
        "name": name,
        "description": about,
        "contentUrl": name,
        "contentSize": f"{path.stat().st_size} B",
        "encodingFormat": kind,
        "sha256": _sha256(path),
    }


def _record_set() -> dict[str, Any]:
    return {
        "@type": "cr:RecordSet",
        "@id": "cases",
        "name": "cases",
        "description": "One record a case.",
        "key": {"@id": "cases/case"},
        "field": [
            {
                "@type": "cr:Field",
                "@id": f"cases/{column}",
                "name": column,
                "description": column.replace("_", " "),
                "dataType": _data_type(column),
                "source": {"fileObject": {"@id": plain.TABLE}, "extract": {"column": column}},
            }
            for column in plain.COLUMNS
        ],
    }


def _data_type(column: str) -> str:
    return "sc:Float" if column in _FLOATS else "sc:Integer" if column in _INTEGERS else "sc:Text"


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_STEP):
            digest.update(piece)
    return digest.hexdigest()


def _context() -> dict[str, Any]:
    own = (
        "citeAs", "column", "equivalentProperty", "extract", "field", "fileProperty", "fileObject", "fileSet", "format",
        "includes", "isLiveDataset", "jsonPath", "key", "md5", "parentField", "path", "recordSet", "references",
        "regex", "repeated", "replace", "samplingRate", "separator", "source", "subField", "transform",
    )  # fmt: skip
    return {
        "@language": "en",
        "@vocab": "https://schema.org/",
        "cr": "http://mlcommons.org/croissant/",
        "rai": "http://mlcommons.org/croissant/RAI/",
        "sc": "https://schema.org/",
        "dct": "http://purl.org/dc/terms/",
        "conformsTo": "dct:conformsTo",
        "data": {"@id": "cr:data", "@type": "@json"},
        "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
        "examples": {"@id": "cr:examples", "@type": "@json"},
        **{name: f"cr:{name}" for name in own},
    }
