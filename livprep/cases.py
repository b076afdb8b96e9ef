"""A case: one scan of a source, as discovered, before any voxel is read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from livprep.errors import CODES

Dataset = Literal["ircadb", "lits", "own", "any"]


def printable(name: str) -> str:
    """A name from outside for messages: line breaks, terminal codes and bytes that are no UTF-8 become escapes."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in name)


@dataclass(frozen=True, order=True)
class FileRef:
    """A file on disk, or inside a zip, or inside a zip inside a zip; small enough to travel to workers.

    Parameters
    ----------
    path
        The file on disk: the file itself or the outermost zip.
    members
        Names inside the zips, outermost first; empty for a plain file.
    """

    path: str
    members: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Last component of the innermost name."""
        return (self.members[-1] if self.members else self.path).rsplit("/", 1)[-1]

    @property
    def is_nifti(self) -> bool:
        """Whether the name is that of a NIfTI file."""
        return self.name.lower().endswith((".nii", ".nii.gz"))

    def __str__(self) -> str:
        return printable("!/".join((self.path, *self.members)))


@dataclass(frozen=True)
class Case:
    """What discovery knows of a case.

    Parameters
    ----------
    case_id
        `ircadb-01`, `lits-028`, `litstest-003`, a name of the catalogue's `own`, or a file or series stem for scans of
        no known data set.
    dataset
        Whose reader reads it.
    number
        Number within the data set; -1 where there is none.
    image
        The scan's files (DICOM slices, or one NIfTI).
    masks
        Mask name -> files (3DIRCADb), or `label` -> one NIfTI (LiTS, own).
    notes
        Warnings of discovery: (code, detail).
    """

    case_id: str
    dataset: Dataset
    number: int
    image: tuple[FileRef, ...]
    masks: tuple[tuple[str, tuple[FileRef, ...]], ...] = ()
    notes: tuple[Note, ...] = ()


@dataclass(frozen=True)
class Note:
    """A finding that does not stop a case: a code of `CODES` and one line, which is stored with the case.

    `private` names what lies on the user's disk; it is told on the terminal and never stored.
    """

    code: str
    detail: str
    private: str = ""

    def __post_init__(self) -> None:
        if self.code not in CODES:
            raise KeyError(f"unknown code {self.code}")

    def __str__(self) -> str:
        return f"{self.code}: {self.detail}"

    @property
    def told(self) -> str:
        """The text for the terminal."""
        return f"{self} ({printable(self.private)})" if self.private else str(self)


@dataclass(frozen=True)
class Rejection:
    """A case that discovery found but cannot hand on."""

    case_id: str
    code: str
    detail: str


@dataclass(frozen=True)
class Finding:
    """One thing that `verify` found; `case` is empty for the store itself."""

    case: str
    code: str
    severity: Literal["error", "warning", "info"]
    detail: str

    def __post_init__(self) -> None:
        if self.code not in CODES:
            raise KeyError(f"unknown code {self.code}")


@dataclass(frozen=True)
class Receipt:
    """What became of one case in one run; `status` is published, unchanged or rejected."""

    case: str
    status: Literal["published", "unchanged", "rejected"]
    code: str = ""
    detail: str = ""
    seconds: float = 0.0
    bytes_in: int = 0
    bytes_out: int = 0
    warnings: tuple[str, ...] = ()
