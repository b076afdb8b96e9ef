"""Can the values of a scan be HU? What its histogram and its corners show, and what is suspicious about it.

HU are water 0 and air -1000 by definition, so a CT of a body has a peak of air, one of fat and one of soft tissue,
whose places are known. Values are described and doubted here, never changed. Bounds are wide: they were set so that
the real patients and all phantoms pass, and each fault of rescaling that is generated in the tests does not.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from livprep.geometry import canonical_axes
from livprep.labels import Label
from livprep.volume import LOWEST_HU, LabelledVolume, histogram

AIR_HU = (-1100, -900)
"""Where the peak of air may lie. Measured -999 to -1022; the lowest value of 12 bits is -1024."""
LUNG_HU = (-950, -600)
TISSUE_HU = (-200, 300)
"""Fat and soft tissue, with contrast medium too; 33 to 61 % of the voxels of the real scans."""
PEAK_HU = (-150, 200)
"""Where the highest peak of `TISSUE_HU` may lie: fat is near -100 HU, soft tissue 20 to 130 HU."""
LIVER_HU = (-25, 250)
"""Where the mode inside the liver may lie. Measured 25 (patient 16, hardly enhanced) to 165 (patient 8) in 3DIRCADb;
unenhanced 55-65 and portal venous 100-120 HU are usual, and severe steatosis falls below 0 HU."""
HIGH_HU = 3071
"""The highest value of 12 bits at an intercept of -1024."""
UNSHIFTED_AIR, UNSHIFTED_TISSUE = (-100, 150), (800, 1300)
"""Where air and tissue lie in stored values whose intercept of about -1024 was lost."""
MIN_VOXELS, MIN_LIVER_VOXELS, MIN_VALUES = 4096, 1000, 16
"""Below these nothing is said: chance decides where a peak lies, and whether values have a common step."""


class Padding(BaseModel):
    """A value that fills the corners of the slices, and its share of all voxels."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    hu: int
    share: float


class Intensity(BaseModel):
    """What the values of a scan show, at the source's own voxels; numbers only.

    Parameters
    ----------
    voxels
        Voxels of the scan.
    low_hu, high_hu
        Lowest and highest value.
    air_hu
        Most frequent value below -200 HU, padding aside where there is other air; None where there is no air.
    tissue_hu
        Center of the highest peak (11 HU wide) within -200...300 HU; None where nothing lies there.
    liver_hu, liver_voxels
        Most frequent value inside the labels, and how many voxels they have; None and 0 without labels.
    corner_hu
        Median at the corners of the slices: air, unless the scan shows nothing outside the body.
    padding
        Values that fill the corners of the slices, the lowest first.
    air_share, tissue_share
        Shares of voxels below -700 HU, and within -200...300 HU.
    high_share
        Share of voxels of 3071 HU and more.
    top_share
        Share of voxels that hold the highest value.
    limit_share
        Share of voxels at -32768 or 32767, the limits of the type.
    step_hu
        Largest number that divides the distances of all values, padding, lowest and highest value aside.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    voxels: int
    low_hu: int
    high_hu: int
    air_hu: int | None
    tissue_hu: int | None
    liver_hu: int | None
    liver_voxels: int
    corner_hu: int
    padding: tuple[Padding, ...]
    air_share: float
    tissue_share: float
    high_share: float
    top_share: float
    limit_share: float
    step_hu: int


@dataclass(frozen=True)
class Suspicion:
    """A reason to doubt that values are HU: a code of `livprep.errors.CODES` and one line."""

    code: str
    detail: str


def describe_intensity(volume: LabelledVolume, counts: npt.NDArray[np.int64]) -> Intensity:
    """Describe a scan.

    Parameters
    ----------
    volume
        HU `(z, y, x)` int16 in any axis order, with labels if there are any.
    counts
        Its `livprep.volume.histogram`.
    """
    size = int(counts.sum())
    values = np.flatnonzero(counts) + LOWEST_HU
    corners = _corners(volume)
    padding = _padding_values(corners)
    liver = _liver_counts(volume)
    inner = values[1:-1][~np.isin(values[1:-1], padding)]
    return Intensity(
        voxels=size,
        low_hu=int(values[0]),
        high_hu=int(values[-1]),
        air_hu=_air(counts, padding),
        tissue_hu=_peak(counts, TISSUE_HU),
        liver_hu=int(liver.argmax()) + LOWEST_HU if liver.any() else None,
        liver_voxels=int(liver.sum()),
        corner_hu=int(np.sort(np.concatenate(corners))[2 * len(corners[0])]),
        padding=tuple(Padding(hu=hu, share=_share(counts, hu, hu)) for hu in padding),
        air_share=_share(counts, LOWEST_HU, -701),
        tissue_share=_share(counts, *TISSUE_HU),
        high_share=_share(counts, HIGH_HU, -LOWEST_HU - 1),
        top_share=_share(counts, int(values[-1]), int(values[-1])),
        limit_share=round(float(counts[0] + counts[-1]) / size, 6),
        step_hu=int(np.gcd.reduce(np.diff(inner))) if len(inner) >= MIN_VALUES else 1,
    )


def _share(counts: npt.NDArray[np.int64], low: int, high: int) -> float:
    """Share of voxels from `low` to `high` HU, both included; rounded, so that it is one text everywhere."""
    return round(float(counts[low - LOWEST_HU : high - LOWEST_HU + 1].sum()) / float(counts.sum()), 6)


def _air(counts: npt.NDArray[np.int64], padding: list[int]) -> int | None:
    below = counts[: -200 - LOWEST_HU].copy()
    below[[hu - LOWEST_HU for hu in padding if hu < -200]] = 0
    if below.sum() >= max(1, 1e-4 * counts.sum()):
        return int(below.argmax()) + LOWEST_HU
    return next((hu for hu in padding if _within(hu, AIR_HU)), None)


def _peak(counts: npt.NDArray[np.int64], bounds: tuple[int, int]) -> int | None:
    low, high = bounds
    part = counts[low - 5 - LOWEST_HU : high + 6 - LOWEST_HU]
    smooth = np.convolve(part, np.ones(11, dtype=np.int64), mode="valid")
    return int(smooth.argmax()) + low if smooth.any() else None


def _corners(volume: LabelledVolume) -> list[npt.NDArray[np.int16]]:
    """The four lines of voxels at the corners of the slices, each `(slices,)` HU."""
    axes, _ = canonical_axes(volume.geometry)
    along_z = np.moveaxis(volume.image.hu, axes.permutation_zyx[0], 0)
    return [along_z[:, y, x] for y, x in ((0, 0), (0, -1), (-1, 0), (-1, -1))]


def _padding_values(corners: list[npt.NDArray[np.int16]]) -> list[int]:
    """Values that nine tenths of one corner of the slices hold: scanners and converters fill what they did not see."""
    found = set()
    for line in corners:
        values, counts = np.unique(line, return_counts=True)
        if counts.max() >= 0.9 * counts.sum():
            found.add(int(values[counts.argmax()]))
    return sorted(found)


def _liver_counts(volume: LabelledVolume) -> npt.NDArray[np.int64]:
    """Histogram inside the labels, slice by slice."""
    if volume.label_map is None:
        return np.zeros(1, dtype=np.int64)
    counts = np.zeros(-2 * LOWEST_HU, dtype=np.int64)
    for hu, labels in zip(volume.image.hu, volume.label_map.labels, strict=True):
        inside = labels != Label.BACKGROUND
        if inside.any():
            counts += histogram(hu[inside][None])
    return counts


def _within(hu: int, bounds: tuple[int, int]) -> bool:
    return bounds[0] <= hu <= bounds[1]


def suspicions(found: Intensity, counts: npt.NDArray[np.int64]) -> tuple[Suspicion, ...]:
    """Say what speaks against HU; empty where nothing does.

    Returns
    -------
    HU_NO_AIR, HU_UNSHIFTED, HU_AIR, HU_TISSUE, HU_LIVER, HU_STEP, HU_PADDING, HU_CUT, HU_HIGH, HU_LIMIT.
    """
    said = []
    if found.air_hu is None:
        lowest = f"lowest value {found.low_hu}" + (", but padding alone below -200" if found.low_hu < -200 else "")
        said.append(Suspicion("HU_NO_AIR", f"{lowest}, expected air near -1000 HU"))
    if found.voxels < MIN_VOXELS:
        return tuple(said)
    return (*said, *_peaks_elsewhere(found, counts), *_spoiled_values(found))


def _peaks_elsewhere(found: Intensity, counts: npt.NDArray[np.int64]) -> list[Suspicion]:
    """Peaks that lie where they cannot in HU: offset or scale are not what they should be."""
    said = []
    shares = [_share(counts, *bounds) for bounds in (UNSHIFTED_AIR, UNSHIFTED_TISSUE)]
    if found.air_hu is None and min(shares) > 0.05:
        air, tissue = _peak(counts, UNSHIFTED_AIR), _peak(counts, UNSHIFTED_TISSUE)
        text = f"peaks at {air} and {tissue}, as of stored values without their intercept of about -1024"
        said.append(Suspicion("HU_UNSHIFTED", f"{text}; expected air near -1000 HU"))
    elif found.air_hu is not None and not _within(found.air_hu, AIR_HU):
        beside = _share(counts, *AIR_HU)
        # lungs alone: the scan shows no air outside the body, or what is outside was filled
        lung = _within(found.air_hu, LUNG_HU) and not AIR_HU[0] <= found.corner_hu <= -200
        if beside < 0.2 * _share(counts, LOWEST_HU, -201) and not lung:
            text = f"the peak of air is at {found.air_hu} HU, expected {AIR_HU[0]} to {AIR_HU[1]} HU"
            said.append(Suspicion("HU_AIR", text))
    low, high = TISSUE_HU
    if found.tissue_share < 0.01:
        text = (
            f"{found.tissue_share:.2%} of the voxels lie within {low}...{high} HU, expected fat and soft tissue there"
        )
        said.append(Suspicion("HU_TISSUE", text))
    elif found.tissue_hu is not None and found.air_hu is not None and not _within(found.tissue_hu, PEAK_HU):
        text = f"the peak of fat or soft tissue is at {found.tissue_hu} HU, expected {PEAK_HU[0]} to {PEAK_HU[1]} HU"
        said.append(Suspicion("HU_TISSUE", text))
    if found.liver_hu is not None and found.liver_voxels >= MIN_LIVER_VOXELS and not _within(found.liver_hu, LIVER_HU):
        text = f"most of the liver has {found.liver_hu} HU, expected {LIVER_HU[0]} to {LIVER_HU[1]} HU"
        said.append(Suspicion("HU_LIVER", text))
    return said


def _spoiled_values(found: Intensity) -> list[Suspicion]:
    """Values that no scanner gives: steps, fillings, cut ends."""
    said = []
    if found.step_hu > 1:
        said.append(Suspicion("HU_STEP", f"all values lie {found.step_hu} HU or multiples of it apart, expected 1 HU"))
    for entry in found.padding if found.air_hu is not None else ():
        if not _within(entry.hu, AIR_HU):
            text = f"{entry.hu} HU fill the corners of the slices ({entry.share:.1%} of the voxels), expected air"
            said.append(Suspicion("HU_PADDING", text))
    if found.top_share > 0.01:
        text = (
            f"{found.top_share:.1%} of the voxels hold the highest value, {found.high_hu} HU: the range was cut there"
        )
        said.append(Suspicion("HU_CUT", text))
    if found.high_share > 0.005:
        text = f"{found.high_share:.1%} of the voxels have {HIGH_HU} HU or more, more than metal explains"
        said.append(Suspicion("HU_HIGH", text))
    if found.limit_share > 0:
        text = f"{found.limit_share:.3%} of the voxels have -32768 or 32767, the limits of the type"
        said.append(Suspicion("HU_LIMIT", text))
    return said
