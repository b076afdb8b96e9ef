"""A store in memory with the methods of `livprep.store.Store`, filled with simple synthetic abdomens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from livprep.geometry import Geometry
from livprep.labels import UNLABELLED, Label, label_counts
from livprep.prepare import Preparation
from livprep.splits import Split
from livprep.store import near_points
from livprep.windows import Window, WindowBank

BANK = WindowBank((Window(40, 220), Window(60, 140)))
_ALL = (slice(None), slice(None), slice(None))


class FakeCase:
    """The methods of `CaseStore` over arrays."""

    def __init__(
        self,
        case_id: str,
        hu: np.ndarray,
        labels: np.ndarray | None,
        spacing_mm: tuple[float, float, float] = (2.0, 1.0, 1.0),
        bank: WindowBank = BANK,
        patient: str | None = None,
    ) -> None:
        self.case_id, self.patient, self.dataset = case_id, patient or case_id, "fake"
        self.fingerprint = f"voxels of {case_id}"
        self.geometry = self.source_geometry = Geometry(hu.shape, spacing_mm)
        self.shape_zyx = hu.shape
        self.windows = bank
        self.has_labels = labels is not None
        self.hu, self.labels = hu, labels
        self.label_counts = None if labels is None else label_counts(labels)
        self.regions: list[Any] = []
        self.hinted: list[Any] = []
        self.cache: Any = None

    def read_hu(self, region: Any = None) -> np.ndarray:
        self.regions.append(region)
        return self.hu[region or _ALL].copy()

    def read_labels(self, region: Any = None) -> np.ndarray:
        assert self.labels is not None
        return self.labels[region or _ALL].copy()

    def read_window(self, name: str, region: Any = None) -> np.ndarray:
        window = next(window for window in self.windows if window.name == name)
        return window.apply(self.hu)[region or _ALL]

    def read_packed(self, region: Any = None, out: np.ndarray | None = None) -> np.ndarray:
        self.regions.append(region)
        hu = np.clip(self.hu[region or _ALL], -1024, 3071).astype(np.int32) + 1024
        labels = UNLABELLED if self.labels is None else self.labels[region or _ALL].astype(np.int32)
        packed = (hu | (labels << 12)).astype(np.uint16)
        if out is None:
            return packed
        out[...] = packed
        return out

    def will_need_packed(self, region: Any) -> None:
        self.hinted.append(region)

    def packed_bytes(self, region: Any = None) -> int:
        return self.hu.nbytes // 2

    def use_cache(self, cache: Any) -> None:
        self.cache = cache

    def class_count(self, label: Label) -> int:
        return 0 if self.labels is None else int((self.labels == label).sum())

    def class_points(self, label: Label) -> np.ndarray:
        if self.labels is None:
            return np.zeros((0, 3), np.int32)
        points = np.argwhere(self.labels == label).astype(np.int32)
        return points[np.random.default_rng(0).permutation(len(points))[:4096]]

    @property
    def near_count(self) -> int:
        return len(self.near_points())

    def near_points(self) -> np.ndarray:
        if self.labels is None:
            return np.zeros((0, 3), np.int32)
        return near_points(self.case_id, self.labels, self.geometry.spacing_mm).astype(np.int32)


class FakeStore(Mapping[str, FakeCase]):
    """The methods of `Store` over fake cases."""

    def __init__(self, cases: list[FakeCase]) -> None:
        self._cases = {case.case_id: case for case in cases}
        self._splits: dict[str, Split] = {}
        self.preparation = Preparation()

    def __getitem__(self, case_id: str) -> FakeCase:
        return self._cases[case_id]

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._cases))

    def __len__(self) -> int:
        return len(self._cases)

    def read_split(self, name: str) -> Split | None:
        return self._splits.get(name)

    def write_split(self, split: Split) -> None:
        self._splits[split.name] = split

    def split_names(self) -> list[str]:
        return sorted(self._splits)


def abdomen(seed: int, shape: tuple[int, int, int] = (24, 32, 32)) -> tuple[np.ndarray, np.ndarray]:
    """HU and labels: a body, a liver with a tumor on the right, and a spleen of liver-like HU on the left."""
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij"))

    def ball(center: tuple[float, float, float], radii: tuple[float, float, float]) -> np.ndarray:
        move = rng.normal(0, 0.04, 3)
        size = rng.uniform(0.9, 1.1, 3)
        offset = (grid - (np.array(center) + move)[:, None, None, None]) / (np.array(radii) * size)[:, None, None, None]
        return (offset**2).sum(axis=0) < 1

    hu = np.full(shape, -1000.0)
    hu[ball((0, 0, 0), (1.5, 0.8, 0.95))] = -90
    hu[ball((0, 0, 0), (1.4, 0.7, 0.85))] = 45
    hu[ball((0, 0.45, 0), (2.0, 0.15, 0.15))] = 400
    liver = ball((0.1, -0.05, -0.35), (0.6, 0.5, 0.4))
    tumor = ball((0.1, -0.1, -0.35), (0.22, 0.18, 0.15)) & liver
    hu[ball((0.1, 0.2, 0.6), (0.4, 0.25, 0.18))] = 105
    hu[liver], hu[tumor] = 110, 55
    labels = np.where(tumor, 2, np.where(liver, 1, 0)).astype(np.uint8)
    return np.rint(hu + rng.normal(0, 18, shape)).astype(np.int16), labels


def fake_store(count: int = 3, shape: tuple[int, int, int] = (24, 32, 32), **options: Any) -> FakeStore:
    """A store of `count` patients, `fake-00` and so on."""
    return FakeStore([FakeCase(f"fake-{k:02d}", *abdomen(k, shape), **options) for k in range(count)])
