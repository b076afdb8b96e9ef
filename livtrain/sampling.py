"""Where the patches of a run lie: patch k is a pure function of (seed, k).

No sampler state exists: any worker, and a resumed run, computes the same patch from its counter. The sampler
sees metadata only (shapes, class counts, stored sample points) and reads no voxels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from livprep.errors import UsageError
from livprep.labels import Label

Shape = tuple[int, int, int]
Points = npt.NDArray[np.int32]

STAGE_ODDS: dict[str, dict[str, float]] = {
    "liver": {"liver": 0.6, "anywhere": 0.4},
    "tumor": {"tumor": 0.6, "liver": 0.4},
    "multiclass": {"tumor": 0.35, "liver": 0.35, "anywhere": 0.3},
}
"""Odds of the kinds of patches per stage; a kind that no case offers is left out."""

_LABELS = {"tumor": Label.TUMOR, "liver": Label.LIVER}
_PATCHES = 0x9A7C  # keeps this stream apart from other uses of (seed, counter)


@dataclass(frozen=True)
class PatchRef:
    """One patch: a case, the voxel where it starts (negative where the volume is smaller), and its counter."""

    case_id: str
    origin_zyx: Shape
    counter: int
    kind: str


class _Case(Protocol):
    """What the sampler asks of `livprep.store.CaseStore`."""

    @property
    def case_id(self) -> str: ...
    @property
    def shape_zyx(self) -> Shape: ...
    def class_points(self, label: Label) -> Points: ...


@dataclass(frozen=True, eq=False)
class CaseIndex:
    """Metadata of one case: shape and, per kind of patch, `(n, 3)` int32 voxel coordinates zyx."""

    case_id: str
    shape_zyx: Shape
    points: Mapping[str, Points]

    @classmethod
    def of(cls, case: _Case) -> CaseIndex:
        """Read the index of a stored case; kinds without a voxel are left out."""
        found = {kind: case.class_points(label) for kind, label in _LABELS.items()}
        return cls(case.case_id, case.shape_zyx, {kind: points for kind, points in found.items() if len(points)})


class PatchSampler:
    """Draws patches of one shape from cases, balanced by kind.

    The kind is drawn first, then one of the cases that offer it, then a voxel of it, so the shares of the kinds
    do not depend on how many cases hold tumors. The voxel falls into the middle half of the patch, unless the
    volume's border pushes the patch away; it is in the patch always.

    Parameters
    ----------
    cases
        Metadata of the cases.
    patch_zyx
        Shape of a patch in voxels.
    odds
        Weight of each kind: `tumor`, `liver`, `anywhere` (uniform in the volume).
    seed
        Seed of the run.
    """

    def __init__(self, cases: Sequence[CaseIndex], patch_zyx: Shape, odds: Mapping[str, float], seed: int) -> None:
        offers = {
            kind: [case for case in cases if kind == "anywhere" or kind in case.points]
            for kind, weight in odds.items()
            if weight > 0
        }
        self._offers = {kind: able for kind, able in offers.items() if able}
        if not self._offers:
            raise UsageError(
                "CONFIG_INVALID",
                f"sampling: none of {len(cases)} cases offers a patch of {sorted(offers)}; expected labelled cases",
            )
        weights = np.array([odds[kind] for kind in self._offers], dtype=np.float64)
        self._kinds = tuple(self._offers)
        self._thresholds = np.cumsum(weights / weights.sum())
        self.patch_zyx = patch_zyx
        self.seed = seed

    def __getitem__(self, counter: int) -> PatchRef:
        """The patch of a counter (0, 1, ...)."""
        rng = np.random.default_rng(np.random.SeedSequence([self.seed, counter, _PATCHES]))
        position = int(np.searchsorted(self._thresholds, rng.random(), side="right"))
        kind = self._kinds[min(position, len(self._kinds) - 1)]
        able = self._offers[kind]
        case = able[int(rng.integers(len(able)))]
        fraction = rng.random(3)
        if kind == "anywhere":
            start = [_anywhere(size, patch, f) for size, patch, f in self._axes(case, fraction)]
        else:
            points = case.points[kind]
            voxel = points[int(rng.integers(len(points)))]
            start = [
                _around(int(v), size, patch, f)
                for v, (size, patch, f) in zip(voxel, self._axes(case, fraction), strict=True)
            ]
        return PatchRef(case.case_id, (start[0], start[1], start[2]), counter, kind)

    def _axes(self, case: CaseIndex, fraction: npt.NDArray[np.float64]) -> list[tuple[int, int, float]]:
        return list(zip(case.shape_zyx, self.patch_zyx, fraction.tolist(), strict=True))


def _anywhere(size: int, patch: int, fraction: float) -> int:
    """Start of a patch that lies uniformly in the volume; centered where the volume is smaller."""
    room = size - patch
    return min(int(fraction * (room + 1)), room) if room >= 0 else room // 2


def _around(voxel: int, size: int, patch: int, fraction: float) -> int:
    """Start of a patch whose middle half holds the voxel, pushed inside the volume."""
    room = size - patch
    if room < 0:
        return room // 2
    return min(max(voxel - int(patch * (0.25 + 0.5 * fraction)), 0), room)
