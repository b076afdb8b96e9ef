"""Synthetic cases of the size of real CT, and the stores of ours that hold them: what the loaders are measured on.

The anatomy is that of `livprep.phantom` (multi-octave fields, organs, 3 to 8 liver tumors) on 250 x 512 x 512
voxels. Correlated noise is added until its sigma is 14 to 22 HU in tissue and 0.7 of that in air: noise decides how
well CT compresses, and lz4hc brings these to about 1/2.35, as it does with real scans (2.1 to 2.75).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from livprep.cases import Receipt
from livprep.catalog import load_catalog
from livprep.cohort import IngestRequest, plan_ingest, plan_windows, run_ingest, run_windows
from livprep.phantom import make_phantom
from livprep.phantom.field import stream
from livprep.phantom.organs import Findings
from livprep.prepare import Preparation
from livprep.schema import ProfileName
from livprep.store import open_store
from livprep.synthesis.lits import write_case
from livprep.windows import Window

Shape = tuple[int, int, int]

FULL_ZYX: Shape = (250, 512, 512)
WINDOWS = (Window(0, 2000, "wide"), Window(40, 400, "soft"), Window(100, 200, "liver"), Window(55, 150, "tumor"))
"""[-1000, 1000], [-160, 240], [0, 200] and [-20, 130] HU."""
_FIELD_MM, _HEIGHT_MM = 400.0, 200.0
_EXTRA_NOISE_HU = (12.2, 17.7)
"""Beside the phantom's own sigma of 7 to 13 HU this gives 14.1 to 22.0 HU in all."""
_AIR_BELOW_HU = -700


@dataclasses.dataclass(frozen=True, eq=False)
class Volume:
    """One case as arrays: `(z, y, x)` int16 HU, uint8 labels, spacing in mm (z, y, x)."""

    case_id: str
    hu: npt.NDArray[np.int16]
    labels: npt.NDArray[np.uint8]
    spacing_mm: tuple[float, float, float]


def shape_of(size: int) -> Shape:
    """Voxels of a case of `size` pixels a side, in the proportions of `FULL_ZYX`."""
    return (max(round(FULL_ZYX[0] * size / FULL_ZYX[1]), 16), size, size)


def write_cases(folder: Path, cases: int, size: int, seed: int = 0) -> None:
    """Write `volume-N.nii` and `segmentation-N.nii`; a case that is there already stays."""
    catalog = load_catalog()
    shape = shape_of(size)
    spacing_mm = (_HEIGHT_MM / shape[0], _FIELD_MM / size, _FIELD_MM / size)
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(cases):
        if (folder / f"segmentation-{number}.nii").exists():
            continue
        patient = f"bench-{number}"
        rng = stream(seed, patient, "loader benchmark")
        findings = Findings(
            liver_hu=float(rng.integers(80, 130)),
            tumors=int(rng.integers(3, 9)),
            tumor_fraction=float(rng.uniform(0.01, 0.08)),
        )
        phantom = make_phantom(shape, spacing_mm, patient=patient, seed=seed, findings=findings)
        extra_hu = float(rng.uniform(*_EXTRA_NOISE_HU))
        noisy = dataclasses.replace(phantom, hu=_add_noise(phantom.hu, extra_hu, rng))
        write_case(folder, noisy, number, catalog, seed, gz=False)


def _add_noise(hu: npt.NDArray[np.int16], sigma_hu: float, rng: np.random.Generator) -> npt.NDArray[np.int16]:
    """Noise with the short in-plane correlation of a soft kernel, slice by slice; the padding stays -1024."""
    noisy = np.empty_like(hu)
    for plane, out in zip(hu, noisy, strict=True):
        noise = ndimage.gaussian_filter(rng.standard_normal(plane.shape, dtype=np.float32), 0.6, truncate=3)
        noise *= sigma_hu / noise.std() * np.where(plane < _AIR_BELOW_HU, np.float32(0.7), np.float32(1))
        out[...] = np.clip(np.rint(plane + noise), -1024, 3071)
        out[plane == -1024] = -1024
    return noisy


def build_store(cases: Path, store: Path, profile: ProfileName) -> None:
    """Ingest the cases with one worker and add `WINDOWS`; what is there already stays."""
    receipts = list(run_ingest(plan_ingest(IngestRequest((cases,), store, profile=profile, workers=1))))
    opened = open_store(store)
    _check(store, [*receipts, *run_windows(opened, plan_windows(opened, WINDOWS), workers=1)])


def build_resampled(cases: Path, store: Path, count: int, spacing_yx_mm: float) -> None:
    """Ingest the first `count` cases (ten at most) at another in-plane spacing, profile balanced, without windows."""
    preparation = Preparation((None, spacing_yx_mm, spacing_yx_mm))
    pattern = f"lits-00[0-{count - 1}]"
    request = IngestRequest((cases,), store, preparation=preparation, pattern=pattern, workers=1)
    _check(store, list(run_ingest(plan_ingest(request))))


def _check(store: Path, receipts: list[Receipt]) -> None:
    faults = [receipt for receipt in receipts if receipt.status == "rejected"]
    if faults:
        raise SystemExit(f"{store}: {faults}")


def read_volumes(store: Path) -> Iterator[Volume]:
    """The cases as arrays, on the grid that the store holds; every peer gets these."""
    opened = open_store(store)
    for case_id in opened:
        case = opened[case_id]
        yield Volume(case_id, case.read_hu(), case.read_labels(), case.geometry.spacing_mm)
