"""Facts about 3DIRCADb-01."""

from __future__ import annotations

from enum import StrEnum
from functools import cached_property
from typing import Literal, Self

from pydantic import Field, model_validator

from livprep.catalog.fact import Fact, Template, number_in


class MaskRole(StrEnum):
    """What a mask folder of 3DIRCADb means."""

    LIVER = "liver"
    TUMOR = "tumor"
    DISPUTED = "disputed"  # a look-alike that somebody counts as tumor and this catalogue does not
    OTHER = "other"
    UNLISTED = "unlisted"


class IrcadbLayout(Fact):
    """Names of folders, zips (`<name>.zip`) and files of 3DIRCADb."""

    case_folder: Template
    scan: str
    masks: str
    ignored: tuple[str, ...]
    slice_file: Template

    def case_number(self, folder_name: str) -> int | None:
        """Patient number of a folder name, e.g. 7 of `3Dircadb1.7`, else None."""
        return number_in(self.case_folder, folder_name)

    def slice_number(self, file_name: str) -> int | None:
        """Slice number of a file name, e.g. 12 of `image_12` or `image_12.dcm`, else None."""
        return number_in(self.slice_file, file_name.removesuffix(".dcm"))


class MaskRoles(Fact):
    """Exact mask names by role; they match without regard to case."""

    liver: tuple[str, ...]
    tumor: tuple[str, ...]
    disputed: tuple[str, ...]
    other: tuple[str, ...]
    disputed_as_tumor: tuple[str, ...] = ()

    @cached_property
    def listed(self) -> dict[str, MaskRole]:
        """Case-folded name to the role the lists give it, before the decision about disputed ones."""
        lists = {
            MaskRole.LIVER: self.liver,
            MaskRole.TUMOR: self.tumor,
            MaskRole.DISPUTED: self.disputed,
            MaskRole.OTHER: self.other,
        }
        return {name.casefold(): role for role, names in lists.items() for name in names}

    @model_validator(mode="after")
    def _check(self) -> Self:
        names = [name.casefold() for name in (*self.liver, *self.tumor, *self.disputed, *self.other)]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"masks {twice} stand in two places; expected one role for each name")
        if stray := [n for n in self.disputed_as_tumor if self.listed.get(n.casefold()) != MaskRole.DISPUTED]:
            raise ValueError(f"disputed_as_tumor names {stray}, which `disputed` does not list")
        return self

    def classify(self, name: str) -> MaskRole:
        """Role of a mask folder; names of `disputed_as_tumor` count as tumor."""
        role = self.listed.get(name.casefold(), MaskRole.UNLISTED)
        chosen = {chosen.casefold() for chosen in self.disputed_as_tumor}
        return MaskRole.TUMOR if name.casefold() in chosen else role


class LiverHu(Fact):
    """Mode and 0.5 and 99.5 percentile of HU inside the liver mask."""

    mode: float
    low: float
    high: float


class IrcadbCase(Fact):
    """One patient of 3DIRCADb; counts are None where they were not measured."""

    number: int = Field(ge=1)
    lits: int = Field(ge=0)
    slices: int = Field(ge=1)
    spacing_mm: tuple[float, float, float]  # z, y, x
    liver_voxels: int | None = None  # of the mask `liver`
    tumor_voxels: int | None = None  # union of the hepatic tumor masks
    tumor_outside_liver: int = 0
    tumor_free: bool
    liver_slices: tuple[int, int] | None = None
    liver_hu: LiverHu | None = None
    masks: tuple[str, ...]
    masks_complete: bool = True  # False: further names may exist (patient 20)

    @property
    def case_id(self) -> str:
        """`ircadb-01` for patient 1."""
        return f"ircadb-{self.number:02d}"

    def tumor_masks(self, roles: MaskRoles) -> tuple[str, ...]:
        """Names of the tumor masks that this patient must have, under the catalogue's decision."""
        return tuple(name for name in self.masks if roles.classify(name) is MaskRole.TUMOR)

    def expected_tumor_voxels(self, roles: MaskRoles) -> int | None:
        """Voxels of the union of `tumor_masks`; None where a disputed mask counts (overlap unknown)."""
        chosen = {name.casefold() for name in roles.disputed_as_tumor}
        return None if chosen & {name.casefold() for name in self.masks} else self.tumor_voxels


class IrcadbFacts(Fact):
    """3DIRCADb-01."""

    title: str
    license: str
    layout: IrcadbLayout
    orientation: Literal["LPS"]
    masks: MaskRoles
    cases: tuple[IrcadbCase, ...]

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len({case.number for case in self.cases}) != len(self.cases):
            raise ValueError("two cases have one number")
        for case in self.cases:
            _check_case(case, self.masks)
        return self

    def case(self, number: int) -> IrcadbCase | None:
        """Return the patient of that number, or None if the catalogue does not list it."""
        return next((case for case in self.cases if case.number == number), None)

    def classify(self, name: str) -> MaskRole:
        """Role of a mask folder name."""
        return self.masks.classify(name)


def _check_case(case: IrcadbCase, roles: MaskRoles) -> None:
    found = [roles.listed.get(name.casefold(), MaskRole.UNLISTED) for name in case.masks]
    if MaskRole.UNLISTED in found or len({name.casefold() for name in case.masks}) != len(found):
        raise ValueError(f"patient {case.number}: a mask is in no role or named twice")
    if found.count(MaskRole.LIVER) != 1:
        raise ValueError(f"patient {case.number}: expected exactly one liver mask")
    if case.tumor_free == (MaskRole.TUMOR in found):
        raise ValueError(
            f"patient {case.number}: tumor_free is {case.tumor_free} but the masks say otherwise "
            "(to count a look-alike as tumor use disputed_as_tumor)"
        )
    if case.tumor_voxels is not None and case.tumor_free != (case.tumor_voxels == 0):
        raise ValueError(f"patient {case.number}: tumor_free is {case.tumor_free} at {case.tumor_voxels} tumor voxels")
    if min(case.spacing_mm) <= 0:
        raise ValueError(f"patient {case.number}: spacing {case.spacing_mm} mm, expected positive values")
    if case.liver_slices is not None and not 0 <= case.liver_slices[0] <= case.liver_slices[1] < case.slices:
        raise ValueError(f"patient {case.number}: liver slices {case.liver_slices} outside 0...{case.slices - 1}")
