"""Metrics against brute force, and the challenge's numbers on cases worked by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from livprep.errors import GeometryError
from livtrain.metrics import LITS_NAMES, lits_case, lits_summary, score_masks, surface_distances
from livtrain.metrics.lesions import components, detect, overlaps

SPACING = (2.5, 0.7, 0.8)
SPACINGS = st.tuples(*[st.sampled_from([0.6, 1.0, 1.6, 5.0])] * 3)


@st.composite
def _pairs(draw: st.DrawFn, high: int = 1) -> tuple[np.ndarray, np.ndarray]:
    shape = draw(st.tuples(*[st.integers(1, 5)] * 3))
    values = arrays(np.uint8, shape, elements=st.integers(0, high))
    return draw(values), draw(values)


def _surface(mask: np.ndarray) -> np.ndarray:
    """Voxels with a background voxel (or the outside) among their 18 neighbors."""
    padded = np.pad(mask, 1)
    found = []
    for index in np.argwhere(mask):
        around = [
            padded[tuple(index + 1 + np.array(step))]
            for step in np.ndindex(3, 3, 3)
            for step in [tuple(s - 1 for s in step)]
            if np.count_nonzero(step) <= 2
        ]
        if not all(around):
            found.append(index)
    return np.array(found).reshape(-1, 3)


@settings(max_examples=60, deadline=None)
@given(pair=_pairs(), spacing=SPACINGS)
def test_surface_distances_equal_brute_force(
    pair: tuple[np.ndarray, np.ndarray], spacing: tuple[float, float, float]
) -> None:
    p, r = pair[0] > 0, pair[1] > 0
    got = surface_distances(p, r, spacing)
    if not p.any() or not r.any():
        assert got is None
        return
    distances = np.linalg.norm((_surface(p)[:, None] - _surface(r)[None]) * np.array(spacing), axis=-1)
    near_r, near_p = distances.min(axis=1), distances.min(axis=0)
    both = np.concatenate([near_r, near_p])
    assert got is not None
    assert got.assd == pytest.approx(both.mean())
    assert got.rmsd == pytest.approx(np.sqrt((both**2).mean()))
    assert got.msd == pytest.approx(both.max())
    assert got.hd95 == pytest.approx(max(np.percentile(near_r, 95), np.percentile(near_p, 95)))
    assert got.surface_dice(1.0) == pytest.approx((both <= 1.0).mean())


@settings(max_examples=60, deadline=None)
@given(pair=_pairs(), spacing=SPACINGS)
def test_mask_scores_follow_their_formulas(
    pair: tuple[np.ndarray, np.ndarray], spacing: tuple[float, float, float]
) -> None:
    p, r = pair[0] > 0, pair[1] > 0
    scores = score_masks(p, r, spacing)
    both, either = np.count_nonzero(p & r), np.count_nonzero(p | r)
    if either == 0:
        assert all(math.isnan(value) for value in scores.as_dict().values())
        return
    assert scores.dice == pytest.approx(2 * both / (p.sum() + r.sum()))
    assert scores.jaccard == pytest.approx(both / either)
    assert scores.voe == pytest.approx(1 - both / either)
    if p.any():
        assert scores.rvd == pytest.approx((int(r.sum()) - int(p.sum())) / p.sum())
    else:
        assert math.isnan(scores.rvd)
    mirrored = score_masks(r, p, spacing)
    assert [mirrored.dice, mirrored.voe] == pytest.approx([scores.dice, scores.voe])
    for name in ("assd", "rmsd", "msd", "hd95", "surface_dice"):
        assert getattr(mirrored, name) == pytest.approx(getattr(scores, name), nan_ok=True)


def test_equal_masks_score_perfectly_and_one_empty_mask_has_no_distance() -> None:
    mask = np.zeros((4, 4, 4), dtype=bool)
    mask[1:3, 1:3, 1:3] = True
    same = score_masks(mask, mask, SPACING)
    assert (same.dice, same.voe, same.rvd, same.assd, same.hd95, same.surface_dice) == (1, 0, 0, 0, 0, 1)
    missed = score_masks(np.zeros_like(mask), mask, SPACING)
    assert (missed.dice, missed.jaccard, missed.voe, missed.surface_dice) == (0, 0, 1, 0)
    assert all(math.isnan(value) for value in (missed.rvd, missed.assd, missed.rmsd, missed.msd, missed.hd95))
    assert score_masks(mask, np.zeros_like(mask), SPACING).rvd == -1


def test_distances_are_in_millimeters_along_each_axis() -> None:
    for axis, step in enumerate(SPACING):
        p, r = np.zeros((9, 9, 9), dtype=bool), np.zeros((9, 9, 9), dtype=bool)
        p[4, 4, 4] = True
        r[tuple(7 if k == axis else 4 for k in range(3))] = True
        assert score_masks(p, r, SPACING).msd == pytest.approx(3 * step)


def test_other_shapes_are_refused() -> None:
    with pytest.raises(GeometryError, match=r"prediction of \(2, 2, 2\) voxels"):
        score_masks(np.ones((2, 2, 2), dtype=bool), np.ones((2, 2, 3), dtype=bool), SPACING)


def _row(*runs: tuple[int, int], length: int = 60) -> np.ndarray:
    """A one-row mask with the given runs (start, stop); components are numbered from the left."""
    mask = np.zeros((1, 1, length), dtype=bool)
    for start, stop in runs:
        mask[..., start:stop] = True
    return mask


def _detect(p: np.ndarray, r: np.ndarray, threshold: float = 0.5, *, own_union: bool = False) -> tuple[int, int, int]:
    found = detect(overlaps(components(p), components(r)), threshold, own_union=own_union)
    return found.tp, found.fp, found.fn


def test_a_lesion_is_detected_above_half_overlap_strictly() -> None:
    reference = _row((10, 20))
    assert _detect(_row((10, 20)), reference) == (1, 0, 0)
    assert _detect(_row((10, 16)), reference) == (1, 0, 0)
    assert _detect(_row((10, 15)), reference) == (0, 1, 1)  # exactly one half
    assert _detect(_row((10, 15)), reference, 0.0) == (1, 0, 0)
    assert _detect(_row((30, 40)), reference, 0.0) == (0, 1, 1)
    assert _detect(_row(), reference) == (0, 0, 1)
    assert _detect(_row((3, 4)), _row()) == (0, 1, 0)
    assert _detect(_row(), _row()) == (0, 0, 0)


def test_parts_of_one_lesion_are_merged() -> None:
    """Two components on one lesion make one detection; the other counts as false, as in the challenge."""
    assert _detect(_row((10, 14), (15, 20)), _row((10, 20))) == (1, 1, 0)


def test_lesions_under_one_component_are_merged() -> None:
    """A merged pair that is found counts once; one that is missed takes two off, so tp can turn negative."""
    two = _row((10, 15), (16, 21))
    assert _detect(_row((10, 21)), two) == (1, 0, 1)
    assert _detect(_row((14, 17)), two) == (-1, 2, 3)


def test_a_component_goes_to_the_lesion_that_it_covers_most() -> None:
    found = detect(overlaps(components(_row((10, 40))), components(_row((10, 14), (15, 39)))), 0.5)
    assert found.pairs == (((1,), (1, 2)),)  # both lesions are tied to the only component, hence merged
    p, r = _row((10, 20), (21, 40)), _row((12, 25), (26, 40))
    found = detect(overlaps(components(p), components(r)), 0.0)
    assert found.pairs == (((1,), (1,)), ((2,), (2,)))


def test_the_union_is_the_scorers_unless_the_own_one_is_wanted() -> None:
    """The scorer looks up the prediction in the union by a number of the reference's numbering.

    The first component is false, so component 2 meets lesion 1 and its own voxels drop out of the union.
    """
    p, r = _row((0, 2), (10, 31)), _row((12, 22))
    assert _detect(p, r, own_union=True) == (0, 2, 1)  # 10 / 21
    assert _detect(p, r) == (1, 1, 0)  # 10 / 10


@settings(max_examples=80, deadline=None)
@given(pair=_pairs())
def test_lesion_counts_add_up(pair: tuple[np.ndarray, np.ndarray]) -> None:
    p, r = components(pair[0] > 0), components(pair[1] > 0)
    for threshold in (0.0, 0.5):
        for own_union in (False, True):
            found = detect(overlaps(p, r), threshold, own_union=own_union)
            assert (found.tp + found.fp, found.tp + found.fn) == (p.max(), r.max())
            assert len({n for pair in found.pairs for n in pair[0]}) == sum(len(pair[0]) for pair in found.pairs)
            if threshold == 0.0:
                matched = {n for group in found.pairs for n in group[0]}
                assert matched == set(np.unique(p[(p > 0) & (r > 0)]).tolist())


def test_components_are_numbered_in_the_files_axis_order() -> None:
    mask = np.zeros((3, 1, 3), dtype=bool)
    mask[0, 0, 2] = mask[2, 0, 0] = True
    assert components(mask)[2, 0, 0] == 1  # x comes first in the file
    assert components(mask)[0, 0, 2] == 2


def _abdomen(liver: tuple[int, int], tumor: tuple[int, int] | None = None) -> np.ndarray:
    labels = np.zeros((6, 6, 20), dtype=np.uint8)
    labels[1:5, 1:5, slice(*liver)] = 1
    if tumor is not None:
        labels[2:4, 2:4, slice(*tumor)] = 2
    return labels


def test_a_perfect_prediction_has_the_best_numbers() -> None:
    labels = _abdomen((2, 18), (5, 9))
    numbers = lits_summary([lits_case(labels, labels, SPACING)])
    assert tuple(numbers) == LITS_NAMES
    assert len(LITS_NAMES) == 24
    ones = {name for name in LITS_NAMES if any(w in name for w in ("dice", "jaccard", "precision", "recall"))}
    assert {name: value for name, value in numbers.items() if name in ones} == dict.fromkeys(ones, 1.0)
    assert all(value == 0 for name, value in numbers.items() if name not in ones)


def test_a_prediction_without_label_1_gets_the_challenges_penalties() -> None:
    reference = _abdomen((2, 18), (5, 9))
    only_tumor = np.where(reference == 2, reference, 0).astype(np.uint8)
    numbers = lits_summary([lits_case(only_tumor, reference, SPACING)])
    assert [numbers[f"liver_{name}"] for name in ("dice", "jaccard", "voe", "rvd", "assd", "rmsd", "msd")] == [
        0, 0, 1, 9001, 9001, 9001, 9001,
    ]  # fmt: skip
    assert (numbers["liver_dice_per_case"], numbers["liver_dice_global"]) == (0, 0)
    burden = 16 / 256
    assert numbers["RMSE_Tumorburden"] == pytest.approx(9001 - burden)
    assert numbers["MAXERROR_Tumorburden"] == pytest.approx(burden - 9001)
    assert numbers["lesion_dice"] == 1


def test_conventions_for_scans_without_tumor() -> None:
    clean, ill = _abdomen((2, 18)), _abdomen((2, 18), (5, 9))
    assert lits_summary([lits_case(clean, clean, SPACING)])["lesion_dice_per_case"] == 1
    numbers = lits_summary([lits_case(ill, clean, SPACING), lits_case(clean, clean, SPACING)])
    assert numbers["lesion_dice_per_case"] == 0.5
    assert numbers["lesion_dice_global"] == 0
    assert (numbers["lesion_precision"], numbers["lesion_recall"]) == (0, 0)
    assert (numbers["lesion_dice"], numbers["lesion_voe"], numbers["lesion_assd"]) == (0, 1, 9001)  # none detected


def test_what_the_scorer_could_not_compute_is_defined() -> None:
    empty = np.zeros((6, 6, 20), dtype=np.uint8)
    for prediction in (empty, _abdomen((2, 18), (5, 9))):
        numbers = lits_summary([lits_case(prediction, empty, SPACING)])
        assert all(math.isfinite(value) for value in numbers.values())
    nothing = lits_summary([lits_case(empty, empty, SPACING)])
    assert (nothing["lesion_dice_global"], nothing["lesion_precision"], nothing["liver_dice_per_case"]) == (1, 0, 0)
    assert all(math.isnan(value) for value in lits_summary([]).values())


def test_means_run_over_detected_lesions_and_rates_are_pooled() -> None:
    reference = np.zeros((3, 3, 60), dtype=np.uint8)
    reference[...] = 1
    reference[1, 1, 5:15] = reference[1, 1, 20:30] = reference[1, 1, 40:50] = 2
    prediction = np.ones_like(reference)
    prediction[1, 1, 5:15] = prediction[1, 1, 20:28] = prediction[1, 1, 34:36] = 2
    case = lits_case(prediction, reference, (1.0, 1.0, 1.0))
    assert (case.detection.tp, case.detection.fp, case.detection.fn) == (2, 1, 1)
    numbers = lits_summary([case, lits_case(np.ones_like(reference), np.ones_like(reference), (1.0, 1.0, 1.0))])
    assert numbers["lesion_precision"] == pytest.approx(2 / 3)
    assert numbers["lesion_dice"] == pytest.approx((1 + 16 / 18) / 2)
    assert numbers["lesion_rvd"] == pytest.approx((0 + 2 / 8) / 2)
    assert numbers["lesion_dice_per_case"] == pytest.approx((36 / 50 + 1) / 2)


@settings(max_examples=40, deadline=None)
@given(pair=_pairs(high=2), spacing=SPACINGS)
def test_numbers_are_finite_and_cropping_changes_none(
    pair: tuple[np.ndarray, np.ndarray], spacing: tuple[float, float, float]
) -> None:
    p, r = pair
    numbers = lits_summary([lits_case(p, r, spacing)])
    assert all(math.isfinite(value) for value in numbers.values())
    wide = lits_summary([lits_case(np.pad(p, 3), np.pad(r, 3), spacing)])
    assert wide == pytest.approx(numbers)
