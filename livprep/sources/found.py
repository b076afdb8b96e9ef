"""What the readers of all data sets hand back."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from livprep.cases import Case, FileRef, Note, Rejection
from livprep.volume import LabelledVolume

Files = list[tuple[tuple[str, ...], FileRef]]
"""Every file: the parts of its (virtual) path, zips taken as folders, and how to read it."""


@dataclass
class Found:
    """Result of one data set's discovery."""

    cases: list[Case] = field(default_factory=list)
    rejected: list[Rejection] = field(default_factory=list)
    ignored: list[Rejection] = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class SourceCase:
    """A case as read, in the source's own array order with repaired geometry.

    Parameters
    ----------
    case
        What was asked for.
    patient
        Patient of the catalogue; cases of one patient share it.
    volume
        Scan and labels.
    header_affine_ras
        The affine as the source's header has it, before any repair.
    notes
        Findings that did not stop the case.
    repairs
        One line for each repair that was made.
    digest, bytes_in
        sha256 over the source's files, and their size.
    """

    case: Case
    patient: str
    volume: LabelledVolume
    header_affine_ras: npt.NDArray[np.float64]
    notes: tuple[Note, ...]
    repairs: tuple[str, ...]
    digest: str
    bytes_in: int


def hu_notes(case_id: str, hu: npt.NDArray[np.int16]) -> tuple[Note, ...]:
    """Look whether values can be HU: a CT holds air near -1000 HU; nothing is ever changed."""
    low = int(hu.min())
    if low >= -200:
        return (Note("HU_NO_AIR", f"{case_id}: lowest value {low}, expected air near -1000 HU"),)
    return ()


def prefer_loose(refs: list[FileRef]) -> FileRef:
    """Of the same file found several times, the one that lies in the fewest zips."""
    return min(refs, key=lambda ref: (len(ref.members), ref))
