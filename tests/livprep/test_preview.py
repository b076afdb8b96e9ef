"""`livprep preview` and the report: what they show, in which place, and what they refuse."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import Outcome
from matplotlib.figure import Figure
from PIL import Image

from livprep.errors import SourceError, UsageError
from livprep.formats.nifti import write_nifti
from livprep.labels import Label
from livprep.preview import AXIAL, axial_planes, preview, side_planes
from livprep.reporting import collect
from livprep.reporting.facts import lesion_diameters
from livprep.reporting.page import find_outliers, render
from livprep.shown import choose_window, load_shown, read_prediction
from livprep.store import Store, open_store
from livprep.windows import Window

Run = Callable[..., Outcome]


@pytest.fixture
def store(small_store: Path) -> Store:
    return open_store(small_store)


def picture(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)


def test_planes_are_spread_over_the_liver_head_first(store: Store) -> None:
    case = store["ircadb-01"]
    shown = load_shown(case, Window(40, 220))
    planes = axial_planes(shown, AXIAL)
    slices = [int(plane.title.split()[1]) for plane in planes]
    with_liver = np.flatnonzero((case.read_labels() > 0).any(axis=(1, 2)))
    assert (max(slices), min(slices)) == (with_liver[-1], with_liver[0])
    assert slices == sorted(slices, reverse=True)
    assert {plane.letters for plane in planes} == {("R", "L", "A", "P")}
    for plane in planes:
        assert plane.reference is not None
        assert (plane.reference > 0).any()
        assert plane.spacing_mm == case.geometry.spacing_mm[1:]


def test_side_planes_have_the_head_on_top_and_true_millimeters(store: Store) -> None:
    case = store["lits-048"]
    coronal, sagittal = side_planes(load_shown(case, Window(40, 220)))
    z_mm, y_mm, x_mm = case.geometry.spacing_mm
    z, y, x = case.shape_zyx
    assert coronal.letters == ("R", "L", "S", "I")
    assert sagittal.letters == ("A", "P", "S", "I")
    assert coronal.size_mm == (z * z_mm, x * x_mm)
    assert sagittal.size_mm == (z * z_mm, y * y_mm)
    labels = case.read_labels()
    row = int(coronal.title.split()[-1])
    np.testing.assert_array_equal(coronal.reference, labels[::-1, row])


def test_the_liver_is_at_the_left_under_the_letter_r(store: Store) -> None:
    """Blue contour pixels lie in the left half of each axial tile, which is the patient's right."""
    for case_id in ("ircadb-01", "lits-028", "lits-068"):
        case = store[case_id]
        for plane in axial_planes(load_shown(case, Window(40, 220)), 3):
            columns = np.flatnonzero((plane.reference == Label.LIVER).any(axis=0))
            assert columns.mean() < plane.image.shape[1] / 2


def test_the_picture_holds_contours_in_the_labels_colors(store: Store) -> None:
    image = picture(preview(load_shown(store["ircadb-01"], Window(40, 220))))
    assert image.shape[1] == 1650
    blue, orange = (np.abs(image - color).max(axis=2) < 12 for color in ((0, 114, 178), (230, 159, 0)))
    assert blue.sum() > 500
    assert orange.sum() > 50
    assert blue.sum() < 0.05 * blue.size  # contours, not fills


def test_a_case_without_labels_is_shown_whole(store: Store) -> None:
    from dataclasses import replace

    shown = replace(load_shown(store["ircadb-01"], Window(40, 220)), reference=None)
    planes = axial_planes(shown, 5)
    assert planes[0].title == f"slice {shown.case.shape_zyx[0] - 1}"
    assert picture(preview(shown)).size


def test_windows_are_found_by_channel_preset_and_numbers(store: Store) -> None:
    case = store["ircadb-01"]
    assert choose_window(case, None) == Window(50, 400, "abdomen")
    assert choose_window(case, "wl60_ww140") == Window(60, 140)
    assert choose_window(case, "bone") == Window(600, 2800, "bone")
    assert choose_window(case, "-600/1500") == choose_window(case, "hu:-600/1500") == Window(-600, 1500)
    with pytest.raises(UsageError, match="expected one of them or LEVEL/WIDTH in HU"):
        choose_window(case, "pretty")


def test_predictions_on_the_source_grid_land_on_the_stored_one(store: Store, tmp_path: Path) -> None:
    """LiTS volumes are stored turned to LPS; a prediction in the source's order is turned alike."""
    from livprep.geometry import canonical_axes

    for case_id in ("lits-028", "lits-068"):
        case = store[case_id]
        axes, _ = canonical_axes(case.source_geometry)
        labels = np.ascontiguousarray(axes.invert(case.read_labels()))
        write_nifti(tmp_path / f"{case_id}.nii.gz", labels, case.source_geometry)
        np.testing.assert_array_equal(read_prediction(case, tmp_path, store.preparation), case.read_labels())


def test_a_missing_or_foreign_prediction_is_refused(livprep: Run, store: Store, tmp_path: Path) -> None:
    case = store["ircadb-01"]
    with pytest.raises(SourceError, match=r"holds no prediction ircadb-01\.nii\.gz"):
        read_prediction(case, tmp_path, store.preparation)
    write_nifti(tmp_path / "ircadb-01.nii.gz", np.zeros((3, 4, 5), np.uint8), store["ircadb-01"].geometry.__class__(
        (3, 4, 5), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), ((1.0, 0, 0), (0, 1.0, 0), (0, 0, 1.0))))  # fmt: skip
    done = livprep("preview", "ircadb-01", "-o", tmp_path / "x.png", "--pred", tmp_path, "--store", store.path)
    assert "expected the scan's own" in done.err
    assert not (tmp_path / "x.png").exists()


def test_the_preview_command(livprep: Run, store: Store, tmp_path: Path) -> None:
    out = tmp_path / "new" / "case.png"
    done = livprep("preview", "ircadb-02", "-o", out, "--window", "wl40_ww220", "--store", store.path)
    assert (done.code, done.out) == (0, "")
    assert out.read_bytes().startswith(b"\x89PNG")
    assert livprep("preview", "nobody", "-o", out, "--store", store.path).code == 2


# --- the report --------------------------------------------------------------------------------------------------


def test_lesion_diameters_are_those_of_the_sphere_of_the_same_volume() -> None:
    labels = np.zeros((20, 20, 20), np.uint8)
    labels[2:6, 2:6, 2:6] = 2
    labels[10, 10, 10] = 2
    labels[11, 11, 10] = 2  # touches by an edge alone: a lesion of its own
    first, second, third = lesion_diameters(labels, 0.001)
    assert first == pytest.approx((6 * 64 / np.pi) ** (1 / 3))
    assert second == third == pytest.approx((6 / np.pi) ** (1 / 3))
    assert lesion_diameters(None, 1.0) == ()


def test_the_report_is_one_page_without_requests(livprep: Run, store: Store, tmp_path: Path) -> None:
    done = livprep("report", "-o", tmp_path, "--store", store.path, "--workers", 1)
    assert done.code == 0
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    for case in store:
        assert f'<figure id="{case}">' in page
    assert "one patient, ircadb-01" in page  # lits-028 is the same scan
    assert "MASK_DISPUTED" in page
    assert page.count("data:image/webp;base64,") == len(store)
    assert page.count("data:image/svg+xml;base64,") == 4
    assert "default-src &#39;none&#39;" in page or "default-src 'none'" in page
    for foreign in ("<script", "http://", "https://", 'src="/'):
        assert foreign not in page
    assert len(page) < 1e6


def test_the_report_of_nothing_is_refused(livprep: Run, store: Store, tmp_path: Path) -> None:
    done = livprep("report", "-o", tmp_path / "r.html", "--cases", "nobody", "--store", store.path)
    assert (done.code, (tmp_path / "r.html").exists()) == (2, False)


def test_texts_are_escaped_and_outliers_named(store: Store) -> None:
    from dataclasses import replace

    (facts,) = collect(store, ["ircadb-01"])
    many = [replace(facts, case=f"c-{k}", liver_ml=1500.0 + k, warnings=("<b>X</b>: y",)) for k in range(9)]
    many.append(replace(facts, case="odd", liver_ml=150.0))
    page = render(store, many, [Window(40, 220)])
    assert "<b>X</b>" not in page
    assert "&lt;b&gt;X&lt;/b&gt;" in page
    (found,) = find_outliers(many)
    assert (found.case, found.what) == ("odd", "liver volume")
    assert find_outliers(many[:7]) == []


def test_volumes_lie_below_the_top_of_their_chart_and_cases_are_whole_numbers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from livprep.figures import charts

    seen: list[Figure] = []
    monkeypatch.setattr(charts, "svg", lambda figure: seen.append(figure) or b"")
    charts.draw_volumes([1489.0, 1430.0, 1489.0], [111.4, 0.0, 111.4])
    liver, tumor = seen[0].axes
    assert liver.get_ylim()[1] > 1489
    assert tumor.get_ylim()[0] < 111.4 < tumor.get_ylim()[1]
    assert all(float(tick).is_integer() for axes in (liver, tumor) for tick in axes.get_xticks())
