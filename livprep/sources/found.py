"""What the readers of all data sets hand back."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from livprep.cases import Case, FileRef, Note, Rejection
from livprep.intensity import Intensity, describe_intensity, suspicions
from livprep.volume import LabelledVolume, histogram

Files = list[tuple[tuple[str, ...], FileRef]]
"""Every file: the parts of its (virtual) path, zips taken as folders, and how to read it."""


@dataclass
class Found:
    """Result of one data set's discovery."""

    cases: list[Case] = field(default_factory=list)
    rejected: list[Rejection] = field(default_factory=list)
    ignored: list[Rejection] = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class Look:
    """What the values of a scan show: its histogram (65,536 counts), a description of it, and what is suspicious."""

    counts: npt.NDArray[np.int64]
    intensity: Intensity
    notes: tuple[Note, ...]


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
    look
        What its values show.
    digest, bytes_in
        sha256 over the source's files, and their size.
    """

    case: Case
    patient: str
    volume: LabelledVolume
    header_affine_ras: npt.NDArray[np.float64]
    notes: tuple[Note, ...]
    repairs: tuple[str, ...]
    look: Look
    digest: str
    bytes_in: int


def look_at(case_id: str, volume: LabelledVolume, said: Iterable[Note]) -> Look:
    """Look whether values can be HU; nothing is ever changed. `said` is what the reader noted before."""
    counts = histogram(volume.image.hu)
    intensity = describe_intensity(volume, counts)
    told = {"HU_PADDING"} if any(note.code == "SERIES_PADDING" for note in said) else set()
    found = [each for each in suspicions(intensity, counts) if each.code not in told]
    return Look(counts, intensity, tuple(Note(each.code, f"{case_id}: {each.detail}") for each in found))


def prefer_loose(refs: list[FileRef]) -> FileRef:
    """Of the same file found several times, the one that lies in the fewest zips."""
    return min(refs, key=lambda ref: (len(ref.members), ref))
