"""What must hold among the slices of one series; each check has a named tolerance and a code of its own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from livprep.cases import Note
from livprep.errors import SourceError
from livprep.formats.dicom_header import CT_SOP_CLASSES
from livprep.formats.dicom_slice import Slice
from livprep.geometry import shortest_decimal

GAP_TOLERANCE = 0.05
"""Largest deviation of one slice distance from the median, as a share of the median."""
ROUNDING_MM = 0.055
"""Largest distance from an even grid at which slices count as even all the same: some positions are given to 0.1 mm."""
SHIFT_TOLERANCE_MM = 0.1
"""Largest in-plane deviation of a slice position from the line along the normal."""
DUPLICATE_TOLERANCE_MM = 1e-3
SPACING_TOLERANCE_MM = 1e-4
COSINE_TOLERANCE = 1e-4
THICKNESS_TOLERANCE_MM = 0.01
TILT_TOLERANCE_DEGREES = 0.1
AIR_HU = -1024
"""Where 12-bit scanners end; padding of this value is air to every reader."""

OTHER_QUANTITIES = {
    "OD": "optical densities in thousandths",
    "MGML": "mg/ml",
    "Z_EFF": "effective atomic numbers",
    "ED": "electron densities",
    "EDW": "electron densities relative to water",
    "PCT": "percent",
}
"""Defined terms of RescaleType (PS3.3 C.11.1.1.2) that are no HU; the terms alone ever enter a message."""


def check_uniform(role: str, slices: Sequence[Slice]) -> None:
    """Raise where slices differ in what one series must share."""
    first = slices[0]
    if len({s.series_uid for s in slices}) > 1:
        raise SourceError("SERIES_MIXED", f"{role}: {len({s.series_uid for s in slices})} series in one folder")
    if len({s.frame_of_reference for s in slices} - {""}) > 1:
        raise SourceError("SERIES_FRAME_OF_REFERENCE", f"{role}: its slices have several frames of reference")
    # One array of all slices: a comparison of each by itself costs more than reading it.
    spacing_off = np.abs(np.array([s.spacing_yx for s in slices]) - first.spacing_yx).max(axis=1)
    turned = np.abs(np.array([s.orientation for s in slices]) - first.orientation).max(axis=1)
    for k, entry in enumerate(slices):
        if role == "image" and entry.modality not in ("", "CT"):
            raise SourceError("SERIES_MODALITY", f"{entry}: the modality is not CT")
        if entry.pixels.shape != first.pixels.shape:
            raise SourceError("SERIES_SHAPE", f"{entry}: {entry.pixels.shape} pixels, expected {first.pixels.shape}")
        if spacing_off[k] > SPACING_TOLERANCE_MM:
            raise SourceError(
                "SERIES_SPACING", f"{entry}: pixel spacing {entry.spacing_yx} mm, expected {first.spacing_yx}"
            )
        if turned[k] > COSINE_TOLERANCE:
            raise SourceError("SERIES_ORIENTATION", f"{entry}: its orientation differs from the other slices'")


def slice_distance(role: str, slices: Sequence[Slice]) -> float:
    """Distance in mm of slices sorted along the normal; they must be even and on one line along it."""
    first = slices[0]
    if len(slices) == 1:
        if not first.thickness or not 0 < first.thickness < float("inf"):
            raise SourceError("SERIES_TAG", f"{first}: a single slice without SliceThickness has no extent")
        return shortest_decimal(first.thickness)
    positions = np.stack([s.position for s in slices])
    along = positions @ first.normal
    steps = np.diff(along)
    if steps.min() < DUPLICATE_TOLERANCE_MM:
        k = int(np.argmin(steps))
        raise SourceError("SERIES_DUPLICATE", f"{slices[k]} and {slices[k + 1]} lie at one position")
    _check_even(role, slices, steps)
    _check_sideways(role, slices, positions - np.outer(along, first.normal))
    return shortest_decimal(float(along[-1] - along[0]) / (len(slices) - 1))


def _check_even(role: str, slices: Sequence[Slice], steps: npt.NDArray[np.float64]) -> None:
    dz = float(np.median(steps))
    odd = np.flatnonzero(np.abs(steps - dz) > GAP_TOLERANCE * dz)
    if not odd.size or (dz / 4 > 2 * ROUNDING_MM and _is_rounded(steps)):
        return
    worst = int(np.argmax(np.abs(steps - dz)))
    inner = odd.size == 2 and odd[1] == odd[0] + 1 and abs(steps[odd].sum() - 2 * dz) <= GAP_TOLERANCE * dz
    missing = round(steps[worst] / dz) - 1
    outer = odd.size == 1 and worst in (0, len(steps) - 1) and abs(steps[worst] - (missing + 1) * dz) > 0.1 * dz
    if len(steps) > 2 and (inner or outer):
        moved = slices[worst if outer and worst == 0 else int(odd[0]) + 1]
        raise SourceError("SERIES_SHIFT", f"{moved}: {steps[worst]:.4g} mm from the next slice, all others {dz:.4g} mm")
    raise SourceError(
        "SERIES_GAP",
        f"{role}: {steps[worst]:.4g} mm between {slices[worst]} and the next slice, expected {dz:.4g} mm",
    )


def _is_rounded(steps: npt.NDArray[np.float64]) -> bool:
    """Whether slices lie on an even grid but for rounding, which does not add up as true unevenness does."""
    along = np.concatenate([[0.0], np.cumsum(steps)])
    index = np.arange(len(along))
    line = np.polynomial.Polynomial.fit(index, along, 1)
    return bool(np.ptp(along - line(index)) <= 2 * ROUNDING_MM)


def _check_sideways(role: str, slices: Sequence[Slice], sideways: npt.NDArray[np.float64]) -> None:
    """Tell a sheared series (each slice further aside: gantry tilt) from single slices that lie aside."""
    shift = float(np.abs(sideways - sideways[0]).max())
    if shift <= SHIFT_TOLERANCE_MM:
        return
    shear = np.outer(np.arange(len(slices)), np.median(np.diff(sideways, axis=0), axis=0))
    aside = sideways - shear
    aside = np.abs(aside - np.median(aside, axis=0)).max(axis=1)
    if aside.max() > SHIFT_TOLERANCE_MM:
        k = int(np.argmax(aside))
        raise SourceError("SERIES_SHIFT", f"{slices[k]}: lies {aside[k]:.3g} mm aside of the other slices")
    raise SourceError("SERIES_TILT", f"{role}: slices shift sideways by up to {shift:.3g} mm, expected none")


def check_complete(role: str, slices: Sequence[Slice], dz: float) -> Iterator[Note]:
    """Look for slices that are missing although the rest are even: at the ends, or every second one.

    The first InstanceNumber proves nothing by itself: series are numbered from anywhere.
    """
    numbers = [s.instance for s in slices if s.instance is not None]
    steps = set(np.diff(numbers).tolist()) if len(numbers) == len(slices) else set()
    step = abs(steps.pop()) if len(steps) == 1 else 0
    stated = slices[0].spacing_between or slices[0].thickness
    if step > 1 and stated and abs(dz - step * stated) <= GAP_TOLERANCE * stated:
        raise SourceError(
            "SERIES_INCOMPLETE",
            f"{role}: only every {step}. slice is there: InstanceNumber rises by {step} and slices lie {dz:g} mm "
            f"apart, expected {stated:g} mm",
        )
    if len(numbers) == len(slices) > 1 and step != 1:
        yield Note("SERIES_NUMBERING", f"{role}: InstanceNumber has gaps or leaps where the positions are even")
    yield from _check_counts(role, slices, numbers if step == 1 else [])


def _check_counts(role: str, slices: Sequence[Slice], numbers: Sequence[int]) -> Iterator[Note]:
    """Compare the slices with the counts of their headers, acquisition by acquisition.

    ImagesInAcquisition counts one acquisition (PS3.3 C.7.6.1.1), and a series may hold several; an acquisition may
    also be reconstructed into several series, so that a count alone is no proof. `numbers` are the InstanceNumbers
    where they follow the slices one by one: with them the end that is missing is known.
    """
    have = Counter(s.acquisition for s in slices)  # in the order of position
    stated = {key: {s.images or 0 for s in slices if s.acquisition == key} for key in have}
    expected = {key: counts.pop() if len(counts) == 1 else 0 for key, counts in stated.items()}
    if any(count <= 0 for count in expected.values()):
        whole = {s.series_images or 0 for s in slices}
        have, expected = Counter({"": len(slices)}), {"": whole.pop() if len(whole) == 1 else 0}
    odd = [key for key in expected if have[key] != expected[key]]
    if min(expected.values()) <= 0 or not odd or set(expected.values()) == {len(slices)}:
        return  # the last: some scanners count the whole series in every acquisition
    some = f"{role}: " if len(expected) == 1 else f"{role}: in {len(odd)} of {len(expected)} acquisitions, in one "
    found, counted = f"{some}{have[odd[0]]} slices", f"the header counts {expected[odd[0]]}"
    total = sum(expected.values())
    ends = {min(numbers), max(numbers) - total} if numbers else set()
    if len(slices) < total and len(odd) == 1 and ends & {0, 1, -1}:
        raise SourceError("SERIES_INCOMPLETE", f"{found}, but {counted}; one end is missing")
    yield Note("SERIES_COUNT", f"{found}, {counted}")


def check_rescale_type(role: str, slices: Sequence[Slice]) -> Iterator[Note]:
    """Look at what the rescaled values are said to be (PS3.3 C.11.1.1.2); nothing stated means HU.

    Other quantities than HU are refused. Unspecified and modified HU are taken as HU, and said: what the values
    show decides then.
    """
    for entry in slices if role == "image" else ():
        if entry.rescale_type in OTHER_QUANTITIES:
            raise SourceError(
                "SERIES_RESCALE_TYPE",
                f"{entry}: RescaleType {entry.rescale_type}: the values are {OTHER_QUANTITIES[entry.rescale_type]}, "
                "expected HU",
            )
    if role == "image" and any(s.rescale_type not in ("", "HU") for s in slices):
        known = sorted({s.rescale_type for s in slices} & {"US", "HU_MOD"})
        shown = " and ".join(known) or "none of the standard's"
        yield Note("SERIES_RESCALE_UNIT", f"{role}: RescaleType is {shown}; the values are taken as HU")


def check_rescale(role: str, slices: Sequence[Slice], hu: npt.NDArray[np.int16]) -> Iterator[Note]:
    """Look at slices whose slope or intercept is not that of most others.

    Each slice is rescaled by its own numbers, which is legal. Where a slice would fit its neighbors better with
    theirs, its numbers are wrong.
    """
    pairs = [s.pixels.rescale for s in slices]
    if len(set(pairs)) == 1:
        return
    common, count = Counter(pairs).most_common(1)[0]
    for z, (slope, intercept) in enumerate(pairs if 2 * count > len(pairs) else ()):
        near = [hu[k].astype(np.float64) for k in (z - 1, z + 1) if 0 <= k < len(hu) and pairs[k] == common]
        if (slope, intercept) == common or not near:
            continue
        own = hu[z].astype(np.float64)
        like_others = (own - intercept) / slope * common[0] + common[1]
        expected = np.mean(near, axis=0)
        if np.abs(like_others - expected).mean() < np.abs(own - expected).mean():
            raise SourceError(
                "SERIES_RESCALE",
                f"{slices[z]}: slope {slope:g} and intercept {intercept:g} make it leap from its neighbors, "
                f"expected {common[0]:g} and {common[1]:g}",
            )
    yield Note("SERIES_RESCALE_VARIES", f"{role}: slope or intercept differ between slices; each slice's own are used")


def header_notes(role: str, slices: Sequence[Slice], dz: float) -> Iterator[Note]:
    """Oddities of the headers that decide nothing."""
    first = slices[0]
    if any(not s.series_uid for s in slices):
        yield Note("SERIES_UID_MISSING", f"{role}: the series UID is empty; the folder's slices were taken as one")
    if any(s.sop_class not in CT_SOP_CLASSES for s in slices):
        yield Note("SERIES_SOP_CLASS", f"{role}: the SOP class is empty or not CT; Modality CT decided")
    if role == "image" and (lossy := sum(s.lossy for s in slices)):
        yield Note(
            "SERIES_LOSSY", f"{role}: {lossy} of {len(slices)} slices were compressed with loss, or may have been"
        )
    if len(slices) > 1 and first.thickness and abs(first.thickness - dz) > THICKNESS_TOLERANCE_MM:
        yield Note("SERIES_THICKNESS", f"{role}: thickness {first.thickness:g} mm, slice distance {dz:g} mm is used")
    tilts = {abs(s.tilt_degrees or 0.0) for s in slices}
    turned = float(np.degrees(np.arccos(np.clip(np.abs(first.normal).max(), 0, 1))))
    if max(tilts) > TILT_TOLERANCE_DEGREES and turned < TILT_TOLERANCE_DEGREES:
        yield Note(
            "SERIES_TILT_STATED",
            f"{role}: a gantry tilt of {max(tilts):g} degrees is stated, but the slices lie straight",
        )
