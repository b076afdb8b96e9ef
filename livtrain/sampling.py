"""Where the patches of a run lie: patch k is a pure function of (seed, k).

No sampler state exists: any thread, worker or rank, and a resumed run, computes the same patch from its counter. The
random numbers are Philox's (Salmon et al., SC 2011), a function of a key and a counter, so that a block of patches
is drawn at once and is the same block by block or one by one. The sampler sees metadata only (shapes, counts, stored
sample points) and reads no voxels; the points of a case are read when a patch first asks for them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Protocol

import numpy as np
import numpy.typing as npt

from livprep.errors import UsageError
from livprep.labels import Label
from livprep.schema import INDEX_POINTS

Shape = tuple[int, int, int]
Points = npt.NDArray[np.integer]
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

STAGE_ODDS: dict[str, dict[str, float]] = {
    # Part of what lay anywhere lies beside the liver now: there are the stomach, spleen, kidney and muscle that a
    # network takes for it, and most of the volume is easy air, fat and lung.
    "liver": {"liver": 0.5, "near": 0.2, "anywhere": 0.3},
    "tumor": {"tumor": 0.6, "liver": 0.4},
    "multiclass": {"tumor": 0.35, "liver": 0.35, "anywhere": 0.3},
}
"""Odds of the kinds of patches per stage; a kind that no case offers is left out."""

KINDS = ("tumor", "liver", "near", "anywhere")
_LABELS = {"tumor": Label.TUMOR, "liver": Label.LIVER}
_PATCHES = 0x9A7C  # keeps this stream apart from other uses of (seed, counter)
_BLOCK = 64
"""Patches drawn at once; their sample points are read together, so a larger block would delay the first patch."""
_WORDS = 8
"""Random words of a patch: kind, case, point, place along z, y, x; two are spare. Philox makes four a step."""
_KIND, _CASE, _POINT, _PLACE = 0, 1, 2, slice(3, 6)


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
    @property
    def near_count(self) -> int: ...
    def class_count(self, label: Label) -> int: ...
    def class_points(self, label: Label) -> npt.NDArray[np.int32]: ...
    def near_points(self) -> npt.NDArray[np.int32]: ...


@dataclass(eq=False)
class CaseIndex:
    """Metadata of one case: shape, and per kind of patch the number of stored points and how to read them.

    Parameters
    ----------
    counts
        Kind -> number of points; a kind without a point is not offered.
    read
        Kind -> `(n, 3)` voxel coordinates zyx; called once a kind, when a patch first needs it.
    """

    case_id: str
    shape_zyx: Shape
    counts: Mapping[str, int] = field(default_factory=dict)
    read: Callable[[str], Points] | None = None
    _points: dict[str, npt.NDArray[np.int16]] = field(default_factory=dict, init=False)

    @classmethod
    def of(cls, case: _Case) -> CaseIndex:
        """The index of a stored case; kinds without a voxel are left out."""
        counts = {kind: min(INDEX_POINTS, case.class_count(label)) for kind, label in _LABELS.items()}
        counts["near"] = case.near_count

        def read(kind: str) -> Points:
            return case.near_points() if kind == "near" else case.class_points(_LABELS[kind])

        return cls(case.case_id, case.shape_zyx, {kind: count for kind, count in counts.items() if count}, read)

    @classmethod
    def of_points(cls, case_id: str, shape_zyx: Shape, points: Mapping[str, Points]) -> CaseIndex:
        """An index whose points are at hand."""
        return cls(case_id, shape_zyx, {k: len(v) for k, v in points.items() if len(v)}, points.__getitem__)

    def points(self, kind: str) -> npt.NDArray[np.int16]:
        """The points `(n, 3)` of a kind, kept in memory (24 kB a kind)."""
        found = self._points.get(kind)
        if found is None:
            assert self.read is not None
            found = np.asarray(self.read(kind), dtype=np.int16)
            self._points[kind] = found  # two threads may read the same ones at first; both are right
        return found


@dataclass(frozen=True, eq=False)
class Block:
    """Patches of consecutive counters: `(n,)` kinds (position in `PatchSampler.kinds`) and cases, `(n, 3)` origins."""

    first: int
    kinds: Ints
    cases: Ints
    origins_zyx: Ints


class PatchSampler:
    """Draws patches of one shape from cases, balanced by kind.

    The kind is drawn first, then one of the cases that offer it, then a voxel of it, so the shares of the kinds
    do not depend on how many cases hold tumors. The voxel falls into the middle half of the patch, unless the
    volume's border pushes the patch away; it is in the patch always.

    With `patches_per_read` p > 1 the p patches of counters n p ... n p + p - 1 are neighbors, so that one read
    serves them all. They share kind, case and voxel, and each draws its own place of the voxel within the patch.
    Each patch by itself is distributed as with p = 1, because it is made of the same independent draws; only
    patches of one group depend on each other. Of `anywhere` patches the later ones are the first one moved by up to
    a quarter of the patch, equally likely to both sides and mirrored at the volume's ends, which keeps them uniform.

    Parameters
    ----------
    cases
        Metadata of the cases.
    patch_zyx
        Shape of a patch in voxels.
    odds
        Weight of each kind: `tumor`, `liver`, `near` (within 20 mm of the liver, outside it), `anywhere` (uniform
        in the volume).
    seed
        Seed of the run.
    patches_per_read
        Neighbors that one read serves.
    """

    def __init__(
        self,
        cases: Sequence[CaseIndex],
        patch_zyx: Shape,
        odds: Mapping[str, float],
        seed: int,
        patches_per_read: int = 1,
    ) -> None:
        if unknown := sorted(set(odds) - set(KINDS)):
            raise UsageError("CONFIG_INVALID", f"sampling: kinds {unknown} are unknown, expected some of {KINDS}")
        wanted = [kind for kind, weight in odds.items() if weight > 0]
        offers = {
            kind: np.array([k for k, case in enumerate(cases) if kind == "anywhere" or kind in case.counts], np.int64)
            for kind in wanted
        }
        self.kinds = tuple(kind for kind in wanted if len(offers[kind]))
        if not self.kinds:
            raise UsageError(
                "CONFIG_INVALID",
                f"sampling: none of {len(cases)} cases offers a patch of {sorted(wanted)}; expected labelled cases",
            )
        weights = np.array([odds[kind] for kind in self.kinds], dtype=np.float64)
        self._offers = [offers[kind] for kind in self.kinds]
        self._thresholds = np.cumsum(weights / weights.sum())[:-1]
        self._cases = list(cases)
        self._shapes = np.array([case.shape_zyx for case in cases], dtype=np.int64)
        self._key = np.random.SeedSequence([seed, _PATCHES]).generate_state(2, np.uint64)
        self._patch = np.array(patch_zyx, dtype=np.int64)
        self.patch_zyx, self.seed, self.patches_per_read = patch_zyx, seed, patches_per_read
        self._kept = lru_cache(maxsize=16)(self._aligned)

    def __getitem__(self, counter: int) -> PatchRef:
        """The patch of a counter (0, 1, ...)."""
        return self.refs(range(counter, counter + 1))[0]

    def refs(self, counters: range) -> list[PatchRef]:
        """The patches of consecutive counters; drawn in blocks, of which the last ones are kept."""
        found: list[PatchRef] = []
        for number in range(counters.start // _BLOCK, (counters.stop - 1) // _BLOCK + 1):
            refs = self._kept(number)
            start = number * _BLOCK
            found += refs[max(counters.start - start, 0) : counters.stop - start]
        return found

    def replacement(self, counter: int, attempt: int) -> PatchRef:
        """What is drawn for a counter whose patch cannot be read: a function of (seed, counter, attempt >= 1)."""
        return self._refs(self.block(counter, 1, attempt))[0]

    def block(self, first: int, count: int, attempt: int = 0) -> Block:
        """Draw the patches of counters `first` ... `first + count - 1` at once."""
        group = self.patches_per_read if attempt == 0 else 1
        low = first - first % group
        draws = self._draws(low, first + count - low, attempt)
        own = draws[first - low :]
        counters = np.arange(first, first + count)
        leader = draws[counters - counters % group - low]  # with groups of one, a patch leads itself
        kinds = np.searchsorted(self._thresholds, leader[:, _KIND], side="right")
        cases = np.empty(count, dtype=np.int64)
        for kind, able in enumerate(self._offers):
            chosen = kinds == kind
            cases[chosen] = able[(leader[chosen, _CASE] * len(able)).astype(np.int64)]
        room = self._shapes[cases] - self._patch
        uniform = np.minimum((leader[:, _PLACE] * (room + 1)).astype(np.int64), room)
        if group > 1:
            uniform = self._moved(uniform, room, own[:, _PLACE], counters % group > 0)
        voxels = self._voxels(kinds, cases, leader[:, _POINT])
        around = voxels - (self._patch * (0.25 + 0.5 * own[:, _PLACE])).astype(np.int64)
        anywhere = np.array([kind == "anywhere" for kind in self.kinds])[kinds, None]
        origins = np.where(anywhere, uniform, np.clip(around, 0, np.maximum(room, 0)))
        return Block(first, kinds, cases, np.where(room < 0, room // 2, origins))  # a smaller volume is centered

    def _draws(self, first: int, count: int, attempt: int) -> Floats:
        """Uniform numbers `(count, 8)` in [0, 1) of consecutive counters."""
        steps = first * (_WORDS // 4)
        words = np.random.Philox(key=self._key, counter=[steps & (2**64 - 1), steps >> 64, attempt, 0])
        raw = words.random_raw(count * _WORDS).reshape(count, _WORDS)
        uniform: Floats = (raw >> np.uint64(11)) * np.float64(
            2.0**-53
        )  # the 53 bits of a double, as numpy's own `random` takes them
        return uniform

    def _moved(self, starts: Ints, room: Ints, fraction: Floats, follows: npt.NDArray[np.bool_]) -> Ints:
        """Starts of neighbors: moved by up to a quarter of the patch, mirrored at the ends of 0 ... room."""
        reach = self._patch // 4
        moved = starts + (fraction * (2 * reach + 1)).astype(np.int64) - reach
        period = 2 * np.maximum(room + 1, 1)
        folded = moved % period
        mirrored = np.minimum(folded, period - 1 - folded)
        return np.where(follows[:, None], mirrored, starts)

    def _voxels(self, kinds: Ints, cases: Ints, fraction: Floats) -> Ints:
        """The voxel `(n, 3)` that each patch must hold; 0 where none does."""
        voxels = np.zeros((len(kinds), 3), dtype=np.int64)
        for row, (kind, case, part) in enumerate(zip(kinds.tolist(), cases.tolist(), fraction.tolist(), strict=True)):
            if self.kinds[kind] != "anywhere":
                points = self._cases[case].points(self.kinds[kind])
                voxels[row] = points[int(part * len(points))]
        return voxels

    def _aligned(self, number: int) -> list[PatchRef]:
        return self._refs(self.block(number * _BLOCK, _BLOCK))

    def _refs(self, block: Block) -> list[PatchRef]:
        return [
            PatchRef(self._cases[case].case_id, (z, y, x), counter, self.kinds[kind])
            for counter, (kind, case, (z, y, x)) in enumerate(
                zip(block.kinds.tolist(), block.cases.tolist(), block.origins_zyx.tolist(), strict=True), block.first
            )
        ]
