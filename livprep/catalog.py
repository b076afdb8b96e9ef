"""The catalogue: what the data sets are, stated in catalog.yaml and parsed once into typed facts.

Readers follow the catalogue instead of guessing: which mask is a tumor, which header is wrong, which two
cases are one patient. Loading cross-checks the facts, so a typing error in one table is found by another.
"""

from __future__ import annotations

import re
from enum import StrEnum
from functools import cached_property
from importlib import resources
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from livprep.errors import CatalogError
from livprep.geometry import Geometry, Shape, Triple
from livprep.provenance import digest_of
from livprep.windows import Window, WindowBank

FILE_NAME = "catalog.yaml"
SIZE_LIMIT_BYTES = 1_000_000
"""A larger file is no catalogue (ours has 20 kB); a folder of unknown origin may bring its own."""

_LPS_OF_LETTER: dict[str, tuple[int, float]] = {
    "L": (0, 1.0), "R": (0, -1.0), "P": (1, 1.0), "A": (1, -1.0), "S": (2, 1.0), "I": (2, -1.0),
}  # fmt: skip


class _Fact(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class MaskRole(StrEnum):
    """What a mask folder of 3DIRCADb means."""

    LIVER = "liver"
    TUMOR = "tumor"
    DISPUTED = "disputed"  # a look-alike that somebody counts as tumor and this catalogue does not
    OTHER = "other"
    UNLISTED = "unlisted"


def _number(template: str, name: str) -> int | None:
    """Number in `name` if it has the form of `template` (`volume-{n}`), without regard to case."""
    before, _, after = template.partition("{n}")
    match = re.fullmatch(f"{re.escape(before)}([0-9]{{1,6}}){re.escape(after)}", name, re.IGNORECASE)
    return int(match[1]) if match else None


class IrcadbLayout(_Fact):
    """Names of folders, zips (`<name>.zip`) and files of 3DIRCADb."""

    case_folder: str
    scan: str
    masks: str
    ignored: tuple[str, ...]
    slice_file: str

    def case_number(self, folder_name: str) -> int | None:
        """Patient number of a folder name, e.g. 7 of `3Dircadb1.7`, else None."""
        return _number(self.case_folder, folder_name)

    def slice_number(self, file_name: str) -> int | None:
        """Slice number of a file name, e.g. 12 of `image_12` or `image_12.dcm`, else None."""
        return _number(self.slice_file, file_name.removesuffix(".dcm"))


class MaskRoles(_Fact):
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


class LiverHu(_Fact):
    """Mode and 0.5 and 99.5 percentile of HU inside the liver mask."""

    mode: float
    low: float
    high: float


class IrcadbCase(_Fact):
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


class IrcadbFacts(_Fact):
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


class NumberRange(_Fact):
    """Numbers from `first` to `last`, both included."""

    first: int = Field(ge=0)
    last: int

    def __contains__(self, number: object) -> bool:
        return isinstance(number, int) and self.first <= number <= self.last


class LitsHeader(NumberRange):
    """Orientation letters that the CT headers of a range of numbers state, and the true ones."""

    header: str = Field(pattern="^[LRAPSI]{3}$")
    truth: str = Field(pattern="^[LRAPSI]{3}$")


class LitsRepair(_Fact):
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
    """What a file name of LiTS says."""

    kind: Literal["volume", "label", "test_volume", "test_label"]
    number: int


class LitsLayout(_Fact):
    """Names of the files of LiTS."""

    volume: str
    label: str
    test_volume: str
    test_label: str
    suffixes: tuple[str, ...]

    def parse(self, file_name: str) -> LitsFile | None:
        """Kind and number of a file name such as `volume-28.nii.gz`, else None."""
        for suffix in sorted(self.suffixes, key=len, reverse=True):
            if not file_name.lower().endswith(suffix):
                continue
            stem = file_name[: -len(suffix)]
            kinds: tuple[Literal["volume", "label", "test_volume", "test_label"], ...]
            kinds = ("volume", "label", "test_volume", "test_label")
            for kind in kinds:
                if (number := _number(getattr(self, kind), stem)) is not None:
                    return LitsFile(kind, number)
        return None


class LitsFacts(_Fact):
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


class Overlap(_Fact):
    """One patient under two names; `evidence` names entries of `Overlaps.evidence`."""

    ircadb: int
    lits: int
    evidence: tuple[str, ...] = Field(min_length=1)


class Overlaps(_Fact):
    """Patients that are in both data sets."""

    evidence: dict[str, str]
    pairs: tuple[Overlap, ...]

    @model_validator(mode="after")
    def _check(self) -> Self:
        if stray := sorted({name for pair in self.pairs for name in pair.evidence} - set(self.evidence)):
            raise ValueError(f"overlaps name evidence {stray} that is not described")
        return self


class WindowFact(_Fact):
    """Center and width in HU of a preset, and who uses it."""

    wl: float
    ww: float
    source: str


class WindowFacts(_Fact):
    """Window presets by name and the bank used where the user names none."""

    preset_facts: dict[str, WindowFact] = Field(alias="presets")
    default_names: tuple[str, ...] = Field(alias="default_bank", min_length=1)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if stray := [name for name in self.default_names if name not in self.preset_facts]:
            raise ValueError(f"default_bank names {stray}, which are no presets")
        self.default_bank()
        return self

    @cached_property
    def presets(self) -> dict[str, Window]:
        """Presets by name; each window carries its name."""
        return {name: Window(fact.wl, fact.ww, name) for name, fact in self.preset_facts.items()}

    def default_bank(self) -> WindowBank:
        """Return the windows of `default_bank` in channel order."""
        return WindowBank(tuple(self.presets[name] for name in self.default_names))


class Catalog(_Fact):
    """Everything catalog.yaml states."""

    schema_version: Literal[1] = Field(alias="schema")
    ircadb: IrcadbFacts
    lits: LitsFacts
    overlaps: Overlaps
    windows: WindowFacts

    @model_validator(mode="after")
    def _check(self) -> Self:
        pairs = {(pair.ircadb, pair.lits) for pair in self.overlaps.pairs}
        if pairs != {(case.number, case.lits) for case in self.ircadb.cases} or len(pairs) != len(self.overlaps.pairs):
            raise ValueError("overlaps and the `lits` numbers of the 3DIRCADb cases differ")
        if wrong := sorted(pair for pair in pairs if pair[1] != 27 + pair[0]):
            raise ValueError(f"overlaps {wrong}: expected LiTS 27 + N for 3DIRCADb N")
        if pairs != {(repair.ircadb, repair.number) for repair in self.lits.repairs}:
            raise ValueError("overlaps and LiTS repairs name different pairs")
        for repair in self.lits.repairs:
            case = self.ircadb.case(repair.ircadb)
            if case is not None and (repair.spacing_mm, repair.slices) != (case.spacing_mm, case.slices):
                raise ValueError(f"LiTS {repair.number}: spacing or slices differ from 3DIRCADb {case.number}")
        both = {case.lits for case in self.ircadb.cases}
        if {case.lits for case in self.ircadb.cases if case.tumor_free} != both & set(self.lits.tumor_free):
            raise ValueError("the tumor-free cases of 3DIRCADb and LiTS do not coincide")
        return self

    @property
    def digest(self) -> str:
        """The sha256 of all facts; comments and layout of the file do not enter."""
        return digest_of(self.as_dict())

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready form with the keys of catalog.yaml; `Catalog.model_validate` reads it back."""
        return self.model_dump(mode="json", by_alias=True)

    def patient_of(self, case_id: str) -> str:
        """Name of a case's patient: `ircadb-01` for `lits-028` too, else the case id itself."""
        match = re.fullmatch(r"lits-([0-9]{3})", case_id)
        pair = next((p for p in self.overlaps.pairs if match and p.lits == int(match[1])), None)
        return f"ircadb-{pair.ircadb:02d}" if pair else case_id


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Safe loader that refuses what PyYAML accepts silently: a key given twice (the last one would win)."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            if key_node.value in seen:
                line = key_node.start_mark.line + 1
                raise CatalogError("CATALOG_INVALID", f"line {line}: key {key_node.value!r} is given twice")
            if isinstance(key_node.value, str):
                seen.add(key_node.value)
        constructed: dict[Any, Any] = super().construct_mapping(node, deep)
        return constructed


def _parse(text: str) -> Any:
    for event in yaml.parse(text, Loader=_Loader):
        if isinstance(event, yaml.AliasEvent):  # nested aliases can blow up a small file without bound
            raise CatalogError("CATALOG_INVALID", f"alias *{event.anchor}: aliases are not allowed")
    return yaml.load(text, Loader=_Loader)  # noqa: S506 - _Loader derives from the safe loader


def _default_text() -> str:
    packaged = resources.files("livprep").joinpath(FILE_NAME)
    if packaged.is_file():
        return packaged.read_text(encoding="utf-8")
    # An editable install: the file lies at the repository's root, beside the package.
    return Path(__file__).resolve().parents[1].joinpath(FILE_NAME).read_text(encoding="utf-8")


def load_catalog(path: Path | None = None) -> Catalog:
    """Load and check a catalogue.

    Parameters
    ----------
    path
        A YAML file; None loads the one that comes with livprep.

    Raises
    ------
    CatalogError
        CATALOG_INVALID: no readable YAML, a key given twice, an unknown key, or facts that contradict others.
    """
    name = FILE_NAME if path is None else path.name
    try:
        if path is not None and path.stat().st_size > SIZE_LIMIT_BYTES:
            raise CatalogError("CATALOG_INVALID", f"larger than {SIZE_LIMIT_BYTES} bytes")
        data = _parse(_default_text() if path is None else path.read_text(encoding="utf-8"))
        return Catalog.model_validate(data)
    except CatalogError as error:
        raise CatalogError("CATALOG_INVALID", f"catalogue {name}: {error.message}") from None
    except ValidationError as error:
        raise CatalogError("CATALOG_INVALID", f"catalogue {name}: {_first_faults(error)}") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        what = " ".join(str(error).split()) or type(error).__name__
        raise CatalogError("CATALOG_INVALID", f"catalogue {name}: not readable as YAML: {what}") from error


def _first_faults(error: ValidationError, limit: int = 3) -> str:
    faults = error.errors(include_url=False, include_context=False, include_input=False)
    shown = [f"{'.'.join(map(str, fault['loc'])) or 'facts'}: {fault['msg']}" for fault in faults[:limit]]
    more = f" (and {len(faults) - limit} more)" if len(faults) > limit else ""
    return "; ".join(shown) + more


def dump_catalog(catalog: Catalog) -> str:
    """Write a catalogue as YAML text that `load_catalog` reads back to an equal one."""
    return yaml.safe_dump(catalog.as_dict(), sort_keys=False, allow_unicode=True, width=110, default_flow_style=None)
