"""Facts about a user's own labelled scans: where each lies and what its label values mean."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Annotated, Any, Literal, Self

from pydantic import Field, StringConstraints, field_validator, model_validator

from livprep.catalog.fact import Fact
from livprep.labels import Label

NAME = r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}"
_VALUE = re.compile("0|[1-9][0-9]{0,2}")
_TAKEN = re.compile(r"(ircadb|lits|litstest)-[0-9]+", re.IGNORECASE)

Name = Annotated[str, StringConstraints(pattern=f"^{NAME}$")]
LabelName = Literal["background", "liver", "tumor"]
Value = Annotated[int, Field(ge=0, le=255)]


class OwnCase(Fact):
    """One scan with its labels.

    Parameters
    ----------
    case
        Its name in the store: letters, digits, `-` and `_`; no name of 3DIRCADb or LiTS.
    patient
        Cases of one patient stay on one side of a split; the case's own name if not given.
    image, label
        Paths relative to the source, `/` between folders, `*` and `?` within a name; zips count as folders. The image
        is one NIfTI or one folder of DICOM slices, the label one NIfTI.
    label_map
        Value in the label file -> what it means; 0 is background unless it says otherwise.
    """

    case: Name
    patient: Name | None = None
    image: str
    label: str
    label_map: dict[Value, LabelName]

    @field_validator("image", "label")
    @classmethod
    def _relative(cls, pattern: str) -> str:
        if any(part in ("", ".", "..") for part in pattern.split("/")) or not pattern.isprintable():
            raise ValueError(f"path {pattern!a}: expected folders and a name relative to the source, without . or ..")
        return pattern

    @field_validator("label_map", mode="before")
    @classmethod
    def _values(cls, entries: Any) -> Any:
        if not isinstance(entries, dict):
            return entries
        if not all(isinstance(key, int | str) and _VALUE.fullmatch(str(key)) for key in entries):
            raise ValueError(f"label_map has the values {list(entries)}: expected whole numbers")
        return entries

    @model_validator(mode="after")
    def _check(self) -> Self:
        if _TAKEN.fullmatch(self.case):
            raise ValueError(f"{self.case} is the name of a 3DIRCADb or LiTS case; give it another")
        if "liver" not in self.label_map.values():
            raise ValueError(f"{self.case}: label_map names no liver")
        return self

    @property
    def patient_id(self) -> str:
        """Patient, or the case where none is given."""
        return self.patient or self.case

    @property
    def labels(self) -> dict[int, Label]:
        """Value in the label file -> label."""
        return {0: Label.BACKGROUND} | {value: Label[name.upper()] for value, name in self.label_map.items()}


def fits(pattern: str, parts: Sequence[str], *, below: bool = False) -> bool:
    """Whether a path relative to the source is that of a pattern, or (`below`) lies in a folder of it."""
    wanted = pattern.split("/")
    if len(parts) < len(wanted) or (len(parts) > len(wanted) and not below):
        return False
    return all(fnmatchcase(part, name) for part, name in zip(parts, wanted, strict=False))


def check_names(cases: Sequence[OwnCase]) -> None:
    """Refuse cases of one name; names that differ in capitals alone would be one folder on some disks."""
    names = [case.case.casefold() for case in cases]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"own: {', '.join(twice[:3])} stands there twice")
