"""Facts about LiTS."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, NamedTuple, Self

from pydantic import Field, field_validator, model_validator

from livprep.catalog.fact import Fact, Template, number_in
from livprep.geometry import Geometry, Shape, Triple

_LPS_OF_LETTER: dict[str, tuple[int, float]] = {
    "L": (0, 1.0), "R": (0, -1.0), "P": (1, 1.0), "A": (1, -1.0), "S": (2, 1.0), "I": (2, -1.0),
}  # fmt: skip


class NumberRange(Fact):
    """Numbers from `first` to `last`, both included."""

    first: int = Field(ge=0)
    last: int

    def __contains__(self, number: object) -> bool:
        return isinstance(number, int) and self.first <= number <= self.last


class LitsHeader(NumberRange):
    """Orientation letters that the CT headers of a range of numbers state, and the true ones."""

    header: str = Field(pattern="^[LRAPSI]{3}$")
    truth: str = Field(pattern="^[LRAPSI]{3}$")


class LitsRepair(Fact):
    """True geometry of a volume that came with an identity header.

    `orientation` gives the true letters of the array as stored: `LAS` means that
    LiTS[z, y, x] = IRCAD[z, rows - 1 - y, x].
    `origin_mm` (x, y, z; LPS) is the position of the voxel that comes first once the array is turned to LPS.
    """

    number: int = Field(ge=0)
    ircadb: int = Field(ge=1)
    slices: int = Field(ge=1)
    orientation: str = Field(pattern="^[LRAPSI]{3}$")
    spacing_mm: tuple[float, float, float]  # z, y, x of the array as stored
    origin_mm: tuple[float, float, float]

    @field_validator("orientation")
    @classmethod
    def _three_axes(cls, letters: str) -> str:
        if {_LPS_OF_LETTER[letter][0] for letter in letters} != {0, 1, 2}:
            raise ValueError(f"orientation {letters} names an axis twice")
        return letters

    def geometry(self, shape_zyx: Shape) -> Geometry:
        """Return the repaired grid of the stored array of `shape_zyx`."""
        direction = [[0.0] * 3 for _ in range(3)]
        origin = list(self.origin_mm)
        for column, letter in enumerate(self.orientation):  # array index x, y, z
            axis, sign = _LPS_OF_LETTER[letter]
            direction[axis][column] = sign
            if sign < 0:
                origin[axis] += (shape_zyx[2 - column] - 1) * self.spacing_mm[2 - column]
        rows: list[Triple] = [(row[0], row[1], row[2]) for row in direction]
        return Geometry(shape_zyx, self.spacing_mm, (origin[0], origin[1], origin[2]), (rows[0], rows[1], rows[2]))


class LitsFile(NamedTuple):
    """What the name of a LiTS file says; `decathlon` where it has the form of MSD Task03 Liver."""

    kind: Literal["volume", "label", "test_volume", "test_label"]
    number: int
    decathlon: bool = False


class DecathlonLayout(Fact):
    """Names of MSD Task03 Liver: folders, and the one form of its files, which means nothing elsewhere."""

    volumes: str
    labels: str
    test_volumes: str
    file: Template


class LitsLayout(Fact):
    """Names of the files of LiTS."""

    volume: Template
    label: Template
    test_volume: Template
    test_label: Template
    suffixes: tuple[str, ...]
    decathlon: DecathlonLayout

    def parse(self, file_name: str) -> LitsFile | None:
        """Kind and number of a file name such as `volume-28.nii.gz`, else None."""
        kinds: tuple[Literal["volume", "label", "test_volume", "test_label"], ...]
        kinds = ("volume", "label", "test_volume", "test_label")
        for kind in kinds:
            if (number := self._number(getattr(self, kind), file_name)) is not None:
                return LitsFile(kind, number)
        return None

    def locate(self, parts: Sequence[str]) -> LitsFile | None:
        """Kind and number of a file by the last parts of its path, e.g. of `imagesTr/liver_28.nii.gz` too."""
        if not parts:
            return None
        names = self.decathlon
        number = self._number(names.file, parts[-1])
        if number is None or len(parts) == 1:
            return self.parse(parts[-1])
        kinds: dict[str, Literal["volume", "label", "test_volume"]]
        kinds = {names.volumes: "volume", names.labels: "label", names.test_volumes: "test_volume"}
        for folder, kind in kinds.items():
            if parts[-2].casefold() == folder.casefold():
                return LitsFile(kind, number, decathlon=True)
        return None

    def _number(self, template: str, file_name: str) -> int | None:
        for suffix in sorted(self.suffixes, key=len, reverse=True):
            if file_name.lower().endswith(suffix):
                number = number_in(template, file_name[: -len(suffix)])
                if number is not None:
                    return number
        return None


class LitsFacts(Fact):
    """LiTS."""

    title: str
    license: str
    layout: LitsLayout
    train: NumberRange
    test: NumberRange
    tumor_free: tuple[int, ...]
    headers: tuple[LitsHeader, ...]
    label_affine_differs: tuple[int, ...]
    test_axes_swapped: tuple[int, ...]
    repairs: tuple[LitsRepair, ...]

    @model_validator(mode="after")
    def _check(self) -> Self:
        spans = [(span.first, span.last) for span in self.headers]
        numbers = [*self.tumor_free, *self.label_affine_differs, *(r.number for r in self.repairs)]
        numbers += [number for span in spans for number in span]
        if stray := [n for n in numbers if n not in self.train] + [
            n for n in self.test_axes_swapped if n not in self.test
        ]:
            raise ValueError(f"LiTS numbers {stray} are outside the data set")
        if any(first > last for first, last in spans) or any(a[1] >= b[0] for a, b in pairwise(spans)):
            raise ValueError("the header ranges overlap or are out of order")
        if len({repair.number for repair in self.repairs}) != len(self.repairs):
            raise ValueError("two repairs have one number")
        for repair in self.repairs:
            header = self.header_of(repair.number)
            if header is not None and header.truth != repair.orientation:
                raise ValueError(f"LiTS {repair.number}: repair {repair.orientation}, header table {header.truth}")
        return self

    def repair(self, number: int) -> LitsRepair | None:
        """Return the repair of a training volume, to be applied where its header is the identity."""
        return next((repair for repair in self.repairs if repair.number == number), None)

    def header_of(self, number: int) -> LitsHeader | None:
        """Return what the catalogue knows of a training volume's header, or None."""
        return next((header for header in self.headers if number in header), None)

    def is_train(self, number: int) -> bool:
        """Whether LiTS has a training volume of that number."""
        return number in self.train

    def is_test(self, number: int) -> bool:
        """Whether LiTS has a test volume of that number."""
        return number in self.test
