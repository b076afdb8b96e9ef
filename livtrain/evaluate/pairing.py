"""Which prediction belongs to which reference: by case, under every name a case goes by."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from livprep.cases import FileRef
from livprep.catalog import Catalog
from livprep.errors import SourceError, UsageError
from livprep.formats.archive import walk
from livprep.sources.anyscan import safe_stem

T = TypeVar("T")

_SUFFIX = re.compile(r"(.+)\.nii(\.gz)?", re.IGNORECASE)
_CASE = re.compile(r"(ircadb|lits|litstest)-(\d+)", re.IGNORECASE)
_DIGITS = {"ircadb": 2, "lits": 3, "litstest": 3}


def case_key(name: str, catalog: Catalog) -> str:
    """The case that a file or case name stands for.

    `lits-028`, `lits-28`, `segmentation-28.nii` and `volume-28.nii.gz` give `lits-028`; `test-segmentation-3.nii`
    gives `litstest-003`; `3Dircadb1.1` gives `ircadb-01`; any other name its stem.
    """
    suffix = _SUFFIX.fullmatch(name)
    stem = suffix[1] if suffix else name
    case = _CASE.fullmatch(stem)
    if case is not None:
        dataset = case[1].lower()
        return f"{dataset}-{int(case[2]):0{_DIGITS[dataset]}d}"
    listed = catalog.lits.layout.parse(f"{stem}.nii")
    if listed is not None:
        return f"{'litstest' if listed.kind.startswith('test') else 'lits'}-{listed.number:03d}"
    patient = catalog.ircadb.layout.case_number(stem)
    return stem if patient is None else f"ircadb-{patient:02d}"


def nifti_files(path: Path) -> list[FileRef]:
    """The NIfTI files of a folder (not of folders below it) or of a zip, or the file itself.

    Raises
    ------
    SourceError
        SOURCE_MISSING: there is no such path. NOTHING_FOUND: a file of another kind. ARCHIVE_…: a damaged zip.
    """
    if path.is_file():
        if _SUFFIX.fullmatch(path.name):
            return [FileRef(str(path))]
        if path.suffix.lower() != ".zip":
            raise SourceError("NOTHING_FOUND", f"{path}: expected a NIfTI (.nii, .nii.gz), or a folder or zip of them")
        found = [ref for _, ref in walk(path)]
    elif path.is_dir():
        found = [FileRef(str(child)) for child in sorted(path.iterdir()) if child.is_file()]
    else:
        raise SourceError("SOURCE_MISSING", f"{path}: no such file or folder")
    return [ref for ref in found if _SUFFIX.fullmatch(ref.name) and not ref.name.startswith(".")]


def by_case(entries: Iterable[tuple[str, T]], catalog: Catalog, what: str) -> dict[str, T]:
    """Index entries (name, value) by case.

    Raises
    ------
    UsageError
        EVALUATE_UNPAIRED: two names stand for one case.
    """
    found: dict[str, T] = {}
    for name, value in entries:
        key = case_key(name, catalog)
        if key in found:
            raise UsageError("EVALUATE_UNPAIRED", f"{what}: {name} and another file both are case {key}")
        found[key] = value
    return found


def named_alike(references: Mapping[str, T], predictions: Mapping[str, object]) -> dict[str, T]:
    """The references, those that lack a prediction under the name that `predict` would give their scan's.

    A scan `patient 1.nii.gz` is predicted as `patient_1.nii.gz`.
    """
    found: dict[str, T] = {}
    for name, value in references.items():
        safe = safe_stem(name)
        renamed = name not in predictions and safe in predictions and safe not in references and safe not in found
        found[safe if renamed else name] = value
    return found


def check_pairs(predictions: Mapping[str, object], references: Sequence[str], *, all_references: bool) -> list[str]:
    """Cases to score, sorted.

    Parameters
    ----------
    predictions, references
        Cases on both sides.
    all_references
        Whether a reference without a prediction is an error too.

    Raises
    ------
    UsageError
        EVALUATE_UNPAIRED: lists what has no partner; PREDICTION_MISSING: there is nothing to score.
    """
    if not predictions:
        raise UsageError("PREDICTION_MISSING", "evaluate: found no prediction, expected files <case>.nii.gz")
    lonely_p = sorted(predictions.keys() - set(references))
    lonely_r = sorted(set(references) - predictions.keys()) if all_references else []
    parts = []
    if lonely_p:
        parts.append(f"without a reference: {', '.join(lonely_p)}")
    if lonely_r:
        parts.append(f"without a prediction: {', '.join(lonely_r)}")
    if parts:
        raise UsageError("EVALUATE_UNPAIRED", f"evaluate: cases {'; '.join(parts)}")
    return sorted(predictions)
