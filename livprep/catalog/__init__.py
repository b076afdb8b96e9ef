"""The catalogue: what the data sets are, stated in catalog.yaml and parsed once into typed facts.

Readers follow the catalogue instead of guessing: which mask is a tumor, which header is wrong, which two
cases are one patient. Loading cross-checks the facts, so a typing error in one table is found by another.
"""

from __future__ import annotations

import re
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import Field, ValidationError, model_validator

from livprep.cases import printable
from livprep.catalog.fact import Fact
from livprep.catalog.ircadb import IrcadbCase, IrcadbFacts, IrcadbLayout, LiverHu, MaskRole, MaskRoles
from livprep.catalog.lits import DecathlonLayout, LitsFacts, LitsFile, LitsHeader, LitsLayout, LitsRepair, NumberRange
from livprep.catalog.own import OwnCase, check_names, fits
from livprep.catalog.shared import Overlap, Overlaps, WindowFact, WindowFacts
from livprep.errors import CatalogError
from livprep.provenance import digest_of

__all__ = [
    "FILE_NAME",
    "SIZE_LIMIT_BYTES",
    "Catalog",
    "DecathlonLayout",
    "IrcadbCase",
    "IrcadbFacts",
    "IrcadbLayout",
    "LitsFacts",
    "LitsFile",
    "LitsHeader",
    "LitsLayout",
    "LitsRepair",
    "LiverHu",
    "MaskRole",
    "MaskRoles",
    "NumberRange",
    "Overlap",
    "Overlaps",
    "OwnCase",
    "WindowFact",
    "WindowFacts",
    "dump_catalog",
    "fits",
    "load_catalog",
]

FILE_NAME = "catalog.yaml"
SIZE_LIMIT_BYTES = 1_000_000
"""A larger file is no catalogue (ours has 20 kB); a folder of unknown origin may bring its own."""


MAX_DEPTH = 20


class Catalog(Fact):
    """Everything catalog.yaml states."""

    schema_version: Literal[1] = Field(alias="schema")
    ircadb: IrcadbFacts
    lits: LitsFacts
    overlaps: Overlaps
    windows: WindowFacts
    own: tuple[OwnCase, ...] = ()

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
        check_names(self.own)
        return self

    @property
    def digest(self) -> str:
        """The sha256 of all facts; comments and layout of the file do not enter."""
        return digest_of(self.as_dict())

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready form with the keys of catalog.yaml; `Catalog.model_validate` reads it back."""
        return self.model_dump(mode="json", by_alias=True)

    def own_case(self, case_id: str) -> OwnCase | None:
        """Return the user's own case of that name, or None."""
        return next((case for case in self.own if case.case == case_id), None)

    def lists(self, case_id: str) -> bool:
        """Whether a name is that of a case of the data sets or of the user's own."""
        known = {case.case_id for case in self.ircadb.cases} | {case.case for case in self.own}
        match = re.fullmatch(r"(lits|litstest)-([0-9]{3})", case_id)
        numbers = {"lits": self.lits.train, "litstest": self.lits.test}
        return case_id in known or (match is not None and int(match[2]) in numbers[match[1]])

    def patient_of(self, case_id: str) -> str:
        """Name of a case's patient: `ircadb-01` for `lits-028` too, what `own` says, else the case id itself."""
        if (listed := self.own_case(case_id)) is not None:
            return listed.patient_id
        match = re.fullmatch(r"lits-([0-9]{3})", case_id)
        pair = next((p for p in self.overlaps.pairs if match and p.lits == int(match[1])), None)
        return f"ircadb-{pair.ircadb:02d}" if pair else case_id


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Safe loader that refuses what PyYAML accepts silently: a key given twice (the last one would win)."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node.value, str):
                raise CatalogError("CATALOG_INVALID", f"line {line}: a key is no plain text")
            if key_node.value in seen:
                raise CatalogError("CATALOG_INVALID", f"line {line}: key {key_node.value[:80]!r} is given twice")
            seen.add(key_node.value)
        constructed: dict[Any, Any] = super().construct_mapping(node, deep)
        return constructed


def _parse(text: str) -> Any:
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:  # libyaml's binding recurses until the stack ends
            raise CatalogError("CATALOG_INVALID", f"nested deeper than {MAX_DEPTH}")
        if isinstance(event, yaml.AliasEvent):  # nested aliases can blow up a small file without bound
            raise CatalogError("CATALOG_INVALID", f"alias *{event.anchor}: aliases are not allowed")
    return yaml.load(text, Loader=_Loader)  # noqa: S506 - _Loader derives from the safe loader


@cache
def _default_facts() -> Any:
    """The catalogue that comes with livprep, parsed; not to be changed."""
    return _parse(_default_text())


def _default_text() -> str:
    packaged = resources.files("livprep").joinpath(FILE_NAME)
    if packaged.is_file():
        return packaged.read_text(encoding="utf-8")
    # An editable install: the file lies at the repository's root, beside the package.
    return Path(__file__).resolve().parents[2].joinpath(FILE_NAME).read_text(encoding="utf-8")


def _read(path: Path) -> str:
    with path.open("rb") as file:
        data = file.read(SIZE_LIMIT_BYTES + 1)
    if len(data) > SIZE_LIMIT_BYTES:
        raise CatalogError("CATALOG_INVALID", f"larger than {SIZE_LIMIT_BYTES} bytes")
    return data.decode("utf-8")


def load_catalog(path: Path | None = None) -> Catalog:
    """Load and check a catalogue.

    Parameters
    ----------
    path
        A YAML file; None loads the one that comes with livprep. A file with a section `own` may leave out the others:
        they are the built-in ones.

    Raises
    ------
    CatalogError
        CATALOG_INVALID: no readable YAML, a key given twice, an unknown key, or facts that contradict others.
    """
    name = FILE_NAME if path is None else printable(path.name)
    try:
        data = _default_facts() if path is None else _parse(_read(path))
        if path is not None and isinstance(data, dict) and "own" in data:
            data = _default_facts() | data
        return Catalog.model_validate(data)
    except CatalogError as error:
        raise CatalogError("CATALOG_INVALID", f"catalogue {name}: {error.message}") from None
    except ValidationError as error:
        raise CatalogError("CATALOG_INVALID", f"catalogue {name}: {_first_faults(error)}") from None
    except (OSError, ValueError, AttributeError, yaml.YAMLError, RecursionError) as error:
        # PyYAML passes on what a scalar's own type raises: a 13th month, a number of 5000 digits, no date at all.
        what = printable(" ".join(str(error).split())[:300]) or type(error).__name__
        raise CatalogError("CATALOG_INVALID", f"catalogue {name}: not readable as YAML: {what}") from error


def _first_faults(error: ValidationError, limit: int = 3) -> str:
    faults = error.errors(include_url=False, include_context=False, include_input=False)
    shown = [f"{'.'.join(map(str, fault['loc'])) or 'facts'}: {fault['msg']}" for fault in faults[:limit]]
    shown = [printable(line[:300]) for line in shown]
    more = f" (and {len(faults) - limit} more)" if len(faults) > limit else ""
    return "; ".join(shown) + more


def dump_catalog(catalog: Catalog) -> str:
    """Write a catalogue as YAML text that `load_catalog` reads back to an equal one."""
    return yaml.safe_dump(catalog.as_dict(), sort_keys=False, allow_unicode=True, width=110, default_flow_style=None)
