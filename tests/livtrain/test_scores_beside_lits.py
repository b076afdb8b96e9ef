"""What stands beside the challenge's numbers: rates, lesions by size, intervals over patients, the report page."""

from __future__ import annotations

import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.spatial import cKDTree

from livprep.formats.nifti import write_nifti
from livprep.geometry import Geometry
from livprep.labels import LABEL_COLORS, Label
from livtrain.evaluate import INTERVALS, Evaluation, compare, evaluate_folder, score_case
from livtrain.figures import Panel, draw_boxes, draw_burden, draw_detection, draw_gallery
from livtrain.metrics import bootstrap, detection_by_size, find_lesions, surface_distances, weighted_mean
from livtrain.metrics.lesions import components, overlaps
from livtrain.metrics.masks import common_box
from livtrain.metrics.sizes import diameter_mm
from livtrain.metrics.surface import surface_mask

SPACING = (2.0, 1.0, 1.0)
RAS = ((-1.0, 0.0, 0.0), (0.0, -1.0, 0.0), (0.0, 0.0, 1.0))


def _case(*lesions: tuple[int, int], liver: bool = True) -> np.ndarray:
    """A row-like liver with lesions (start, stop) along x."""
    labels = np.zeros((6, 8, 64), dtype=np.uint8)
    if liver:
        labels[1:5, 1:7, 2:60] = 1
    for start, stop in lesions:
        labels[2:4, 3:5, start:stop] = 2
    return labels


# --- surfaces ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
def test_far_surfaces_equal_a_search_over_all_points(seed: int) -> None:
    """Beyond the window that is looked at first, the transform of the slice decides."""
    rng = np.random.default_rng(seed)
    shape = tuple(int(n) for n in rng.integers(1, 60, 3))
    spacing = tuple(float(mm) for mm in rng.choice([0.6, 0.977, 1.0, 5.0], 3))
    p, r = (rng.random(shape) < share for share in (0.001, 0.2))
    p.flat[0] = r.flat[-1] = True
    if seed % 2:
        r[: shape[0] // 2] = False  # whole slices without a surface voxel
    found = surface_distances(p, r, spacing)
    assert found is not None
    points_p, points_r = (np.argwhere(surface_mask(mask)) * np.array(spacing) for mask in (p, r))
    np.testing.assert_allclose(found.to_reference_mm, cKDTree(points_r).query(points_p)[0], rtol=0, atol=1e-9)
    np.testing.assert_allclose(found.to_prediction_mm, cKDTree(points_p).query(points_r)[0], rtol=0, atol=1e-9)


def test_rounding_does_not_decide_what_lies_at_the_tolerance() -> None:
    p, r = np.zeros((1, 1, 9), dtype=bool), np.zeros((1, 1, 9), dtype=bool)
    p[..., 1], r[..., 7] = True, True
    found = surface_distances(p, r, (1.0, 1.0, 0.1))
    assert found is not None
    assert found.to_reference_mm[0] == 0.6000000000000001
    assert found.surface_dice(0.6) == 1.0
    assert found.surface_dice(0.5999) == 0.0


@settings(max_examples=60, deadline=None)
@given(
    pair=st.tuples(*[st.integers(1, 6)] * 3).flatmap(
        lambda shape: st.tuples(*[arrays(np.uint8, shape, elements=st.sampled_from([0, 0, 0, 2]))] * 2)
    )
)
def test_the_box_is_the_smallest_that_holds_both(pair: tuple[np.ndarray, np.ndarray]) -> None:
    p, r = pair
    box = common_box(p, r)
    either = np.argwhere((p > 0) | (r > 0))
    if not len(either):
        assert p[box].size == 0
        return
    assert [s.start for s in box] == either.min(axis=0).tolist()
    assert [s.stop for s in box] == (either.max(axis=0) + 1).tolist()
    assert common_box(p.astype(np.int32)[::-1], r.astype(np.int32)[::-1])[1:] == box[1:]


# --- rates and lesions ------------------------------------------------------------------------------------------


def test_rates_follow_their_definitions() -> None:
    reference, prediction = _case((10, 20)), _case((15, 27))
    rates = score_case("a", prediction, reference, SPACING).tumor_rates
    n = 4  # voxels of a lesion a step along x
    assert rates.sensitivity == pytest.approx(5 / 10)
    assert rates.fnr == pytest.approx(1 - 5 / 10)
    assert rates.precision == pytest.approx(5 / 12)
    assert rates.fpr == pytest.approx(7 * n / (reference.size - 10 * n))  # of the whole scan, not of a crop
    assert rates.rvd_reference == pytest.approx(2 / 10)


@pytest.mark.parametrize(
    ("prediction", "reference", "undefined"),
    [
        (_case(), _case(), {"sensitivity", "precision", "fnr", "rvd_reference"}),
        (_case((5, 9)), _case(), {"sensitivity", "fnr", "rvd_reference"}),
        (_case(), _case((5, 9)), {"precision"}),
        (_case(liver=False), _case(liver=False), {"sensitivity", "precision", "fnr", "rvd_reference"}),
    ],
)
def test_what_does_not_exist_is_null(prediction: np.ndarray, reference: np.ndarray, undefined: set[str]) -> None:
    scored = score_case("a", prediction, reference, SPACING)
    details = json.loads(json.dumps(scored.details(), allow_nan=False))
    assert {name for name, value in details["tumor"].items() if value is None} == undefined
    json.dumps(scored.as_json(), allow_nan=False)


def test_nnunet_counts_the_liver_with_and_without_tumor() -> None:
    scored = score_case("a", _case((10, 20)), _case(), SPACING)
    assert scored.liver.dice == 1.0
    assert scored.liver_only_dice == pytest.approx(2 * (1392 - 40) / (2 * 1392 - 40))
    assert math.isnan(score_case("a", _case(liver=False), _case(liver=False), SPACING).liver_only_dice)


def _lesions(prediction: np.ndarray, reference: np.ndarray) -> object:
    return find_lesions(overlaps(components(prediction == 2), components(reference == 2)), 0.1)


def test_each_lesion_is_found_or_missed_on_its_own() -> None:
    """A component over two lesions matches neither, though the challenge would merge and find them."""
    found = _lesions(_case((10, 21), (30, 36), (50, 52)), _case((10, 15), (16, 21), (30, 40)))
    assert [(lesion.touched, lesion.matched) for lesion in found.reference] == [
        (True, False),
        (True, False),
        (True, True),
    ]
    assert [(lesion.touched, lesion.matched) for lesion in found.predicted] == [
        (True, False),
        (True, True),
        (False, False),
    ]
    assert found.reference[2].volume_ml == pytest.approx(4.0)
    half = _lesions(_case((10, 15)), _case((10, 20)))
    assert not half.reference[0].matched  # exactly one half


def test_classes_of_size_are_diameters_of_spheres() -> None:
    assert diameter_mm(4 / 3 * math.pi * 5**3 / 1000) == pytest.approx(10.0)
    table = np.array([[0, 500, 0], [3, 0, 5000]])  # 0.5 ml is 9.85 mm; 5 ml is 21.2 mm
    found = find_lesions(table, 0.001)
    assert [lesion.size_class for lesion in found.reference] == [0, 2]
    small, medium, large, every = detection_by_size([found, find_lesions(np.array([[0, 400]]), 0.001)])
    assert (small.reference, small.touched, large.reference, large.matched, medium.reference) == (2, 0, 1, 1, 0)
    assert math.isnan(medium.sensitivity)
    assert every.sensitivity == pytest.approx(1 / 3)
    assert every.case_sensitivity == pytest.approx((1 / 2 + 0) / 2)
    assert (every.predicted, every.precision) == (1, 1.0)


@settings(max_examples=40, deadline=None)
@given(table=arrays(np.int64, st.tuples(st.integers(1, 4), st.integers(1, 4)), elements=st.integers(0, 9)))
def test_matches_are_one_to_one_and_touched(table: np.ndarray) -> None:
    if (table.sum(axis=0)[1:] == 0).any() or (table.sum(axis=1)[1:] == 0).any():
        return  # a component has voxels
    found = find_lesions(table, 1.0)
    assert sum(lesion.matched for lesion in found.reference) == sum(lesion.matched for lesion in found.predicted)
    assert all(lesion.touched for lesion in (*found.reference, *found.predicted) if lesion.matched)


# --- intervals --------------------------------------------------------------------------------------------------


def test_a_patient_counts_once_however_many_cases_it_has() -> None:
    values = np.array([0.2, 0.8, 0.8, 0.8])
    found = bootstrap(weighted_mean(values), ["a", "b", "b", "b"])
    assert (found.estimate, found.patients, found.cases) == (pytest.approx(0.5), 2, 4)
    assert (found.low, found.high) == (pytest.approx(0.2), pytest.approx(0.8))
    assert bootstrap(weighted_mean(values[:2]), ["a", "b"]) == bootstrap(weighted_mean(values[:2]), ["b2", "b3"])


def test_intervals_follow_the_seed_and_need_two_patients() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(0.9, 0.05, 40)
    names = [str(k) for k in range(40)]
    one, again, other = (bootstrap(weighted_mean(values), names, seed=seed) for seed in (1, 1, 2))
    assert one == again != other
    assert one.low < values.mean() < one.high
    # The bootstrap's width of a mean is that of the normal approximation within a few percent.
    assert one.high - one.low == pytest.approx(2 * 1.96 * values.std() / math.sqrt(40), rel=0.15)
    alone = bootstrap(weighted_mean(values[:1]), names[:1])
    assert alone.estimate == values[0]
    assert math.isnan(alone.low)
    nothing = bootstrap(weighted_mean(np.array([np.nan])), ["a"], known=np.array([False]))
    assert (nothing.patients, math.isnan(nothing.estimate)) == (0, True)


def _evaluation(*pairs: tuple[np.ndarray, np.ndarray], patients: str = "") -> Evaluation:
    names = [f"case-{k}" for k in range(len(pairs))]
    who = list(patients) or names
    scored = [score_case(n, p, r, SPACING, patient=w) for n, w, (p, r) in zip(names, who, pairs, strict=True)]
    return Evaluation(tuple(scored), "a test's grid")


def test_estimates_are_the_data_sets_numbers_where_every_patient_has_one_case() -> None:
    found = _evaluation(
        (_case((10, 19)), _case((10, 20))), (_case(), _case()), (_case((5, 9)), _case((30, 40), (50, 55)))
    )
    intervals = found.intervals()
    assert set(intervals) == set(INTERVALS)
    for name in ("liver_dice_per_case", "lesion_dice_per_case", "lesion_dice_global", "liver_dice_global"):
        assert intervals[name].estimate == pytest.approx(found.lits[name])
    for name in ("lesion_recall", "lesion_precision"):
        assert intervals[name].estimate == pytest.approx(found.lits[name])
    assert intervals["nnunet_tumor_dice"].estimate == pytest.approx(found.nnunet["tumor_dice"])
    assert intervals["nnunet_tumor_dice"].cases == 2
    assert intervals["nnunet_liver_only_dice"].estimate == pytest.approx(found.nnunet_liver_only)


def test_nothing_to_find_has_no_interval() -> None:
    found = _evaluation((_case(), _case()), (_case(), _case()))
    assert math.isnan(found.intervals()["lesion_recall"].estimate)
    assert found.intervals()["lesion_dice_per_case"].estimate == 1.0
    details = json.loads(json.dumps(found.details(), allow_nan=False))
    assert details["intervals"]["lesion_recall"]["estimate"] is None
    assert details["lesions_by_size"][-1]["sensitivity"] is None


def test_differences_are_of_patients_and_know_their_direction() -> None:
    reference = _case((10, 20))
    good, bad = _case((10, 19)), _case((10, 14))
    bad[1:5, 1:7, 55:60] = 0
    first = _evaluation((good, reference), (good, reference), (good, reference), patients="aab")
    second = _evaluation((bad, reference), (bad, reference), (bad, reference), patients="aab")
    found = compare(first, second)
    assert (found["tumor_dice"].cases, found["tumor_dice"].patients) == (3, 2)
    assert (found["tumor_dice"].better, found["liver_assd"].better) == (2, 2)
    assert found["liver_assd"].mean < 0 < found["liver_dice"].mean
    assert found["tumor_dice"].low == pytest.approx(found["tumor_dice"].high)
    assert compare(first, first)["liver_dice"].worse == 0


# --- the report -------------------------------------------------------------------------------------------------


def _folder(path: Path, **cases: np.ndarray) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    for name, labels in cases.items():
        write_nifti(path / f"{name}.nii.gz", labels, Geometry(labels.shape, SPACING, (5.0, 6.0, 7.0), RAS))
    return path


def _run(*arguments: object) -> Result:
    from livcli.livtrain_evaluate import evaluate

    result = CliRunner().invoke(evaluate, [str(argument) for argument in arguments], standalone_mode=False)
    assert result.exception is None, result.exception
    return result


class _Page(HTMLParser):
    """Collects what a page refers to, its text, and its tags."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.text: list[str] = []
        self.tags: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "data", "action")]

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def test_the_report_is_one_file_that_fetches_nothing(tmp_path: Path) -> None:
    references = _folder(tmp_path / "r", one=_case((10, 20)), two=_case((30, 45)), clean=_case())
    good = _folder(tmp_path / "p", one=_case((10, 19)), two=_case(liver=False), clean=_case((5, 6)))
    other = _folder(tmp_path / "<b>q", one=_case((10, 12)), two=_case((30, 44)), clean=_case())
    arguments = (
        "-p",
        good,
        "-r",
        references,
        "--against",
        other,
        "--report",
        tmp_path / "out" / "page",
        "-q",
        "--json",
    )
    _run(*arguments)
    path = tmp_path / "out" / "page" / "report.html"
    assert list(path.parent.iterdir()) == [path]
    text = path.read_text(encoding="utf-8")
    page = _Page(text)
    assert all(link.startswith(("data:image/", "#")) for link in page.links)
    assert sum(link.startswith("data:image/png") for link in page.links) == 3
    assert not page.tags & {"script", "iframe", "object", "link", "b><b"}
    assert not re.findall(r"https?://", re.sub(r"data:image/[^\"]+", "", text))
    assert "default-src 'none'" in text
    said = " ".join(" ".join(page.text).split())
    for name in INTERVALS:
        assert name in said
    assert "Paired comparison with <b>q" in said  # escaped in the page, plain to the reader
    assert "liver Dice 0.000, rank 1 from below" in said
    assert "labels only" in said
    _run(*arguments)
    assert path.read_text(encoding="utf-8") == text  # the same bytes again


def test_the_gallery_shows_the_scan_where_there_is_one(tmp_path: Path) -> None:
    reference = _case((10, 20))
    raw = _folder(tmp_path / "raw", **{"segmentation-3": reference})
    rng = np.random.default_rng(0)
    write_nifti(
        raw / "volume-3.nii.gz",
        rng.integers(-1000, 300, reference.shape).astype(np.int16),
        Geometry(reference.shape, SPACING, (5.0, 6.0, 7.0), RAS),
    )
    predictions = _folder(tmp_path / "p", **{"lits-003": _case((12, 22))})
    result = _run("-p", predictions, "-r", raw, "--report", tmp_path / "page.html", "--worst", "1")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "window: level 50, width 400 HU" in text
    assert f"report: {tmp_path / 'page.html'}" in result.stderr
    none = _run("-p", predictions, "-r", raw, "--report", tmp_path / "none.html", "--worst", "0", "-q")
    assert none.stderr == ""
    assert "data:image/png" not in (tmp_path / "none.html").read_text(encoding="utf-8")


def test_pictures_are_drawn_of_anything() -> None:
    """No case, no value, one voxel: a picture, never a warning."""
    empty = Panel(
        "nothing", None, np.zeros((3, 4), np.uint8), np.zeros((3, 4), np.uint8), (1.0, 2.0), ("R", "L", "A", "P")
    )
    full = Panel("all", None, np.full((1, 4), 2, np.uint8), np.ones((1, 4), np.uint8), (1.0, 2.0), ("R", "L", "S", "I"))
    assert draw_gallery([empty, full]).startswith(b"\x89PNG")
    for picture in (
        draw_boxes({"Dice": {"liver": [math.nan], "tumor": []}, "mm": {"liver": [3.0], "tumor": [0.0, 0.0]}}, ("mm",)),
        draw_detection(detection_by_size([]), []),
        draw_burden([], []),
        draw_burden([1.0], [2.0]),
    ):
        assert b"<svg" in picture


def test_contours_have_the_colors_of_the_labels(tmp_path: Path) -> None:
    from PIL import Image

    labels = np.zeros((40, 40), dtype=np.uint8)
    labels[5:35, 5:35], labels[15:25, 15:25] = 1, 2
    panel = Panel("x", None, labels, labels, (1.0, 1.0), ("R", "L", "A", "P"))
    (tmp_path / "x.png").write_bytes(draw_gallery([panel]))
    pixels = np.asarray(Image.open(tmp_path / "x.png").convert("RGB")).reshape(-1, 3)
    for label in (Label.LIVER, Label.TUMOR):
        assert (pixels == np.array(LABEL_COLORS[label])).all(axis=1).sum() > 100


# --- the command ------------------------------------------------------------------------------------------------


def test_all_prints_intervals_and_sizes(tmp_path: Path) -> None:
    references = _folder(tmp_path / "r", **{"lits-028": _case((10, 20)), "ircadb-01": _case((10, 20)), "x": _case()})
    predictions = _folder(tmp_path / "p", **{"lits-028": _case((10, 18)), "ircadb-01": _case((10, 18)), "x": _case()})
    found = json.loads(_run("-p", predictions, "-r", references, "--json", "--all", "-q", "--tolerance-mm", 1).stdout)
    details = found["details"]
    assert details["surface_tolerance_mm"] == 1.0
    assert [case["patient"] for case in details["cases"]] == ["ircadb-01", "ircadb-01", "x"]
    assert details["intervals"]["liver_dice_per_case"]["patients"] == 2
    assert [entry["name"] for entry in details["lesions_by_size"]][-1] == "all"
    shown = _run("-p", predictions, "-r", references, "--all", "-q").stdout
    assert "95 % interval" in shown
    assert "≥ 20 mm" in shown


def test_the_tolerance_moves_the_surface_dice(tmp_path: Path) -> None:
    references, predictions = _folder(tmp_path / "r", a=_case((10, 20))), _folder(tmp_path / "p", a=_case((13, 23)))
    near, far = (evaluate_folder(predictions, [references], tolerance_mm=mm) for mm in (1.0, 3.0))
    assert near.cases[0].tumor.surface_dice < far.cases[0].tumor.surface_dice == 1.0
