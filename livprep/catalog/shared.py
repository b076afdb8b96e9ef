"""Facts that belong to no one data set: patients in both, and windows."""

from __future__ import annotations

from functools import cached_property
from typing import Self

from pydantic import Field, model_validator

from livprep.catalog.fact import Fact
from livprep.windows import Window, WindowBank


class Overlap(Fact):
    """One patient under two names; `evidence` names entries of `Overlaps.evidence`."""

    ircadb: int
    lits: int
    evidence: tuple[str, ...] = Field(min_length=1)


class Overlaps(Fact):
    """Patients that are in both data sets."""

    evidence: dict[str, str]
    pairs: tuple[Overlap, ...]

    @model_validator(mode="after")
    def _check(self) -> Self:
        if stray := sorted({name for pair in self.pairs for name in pair.evidence} - set(self.evidence)):
            raise ValueError(f"overlaps name evidence {stray} that is not described")
        return self


class WindowFact(Fact):
    """Center and width in HU of a preset, and who uses it."""

    wl: float
    ww: float
    source: str


class WindowFacts(Fact):
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
