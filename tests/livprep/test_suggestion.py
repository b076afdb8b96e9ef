"""Which window: shares and AUC against plain counting over the voxels."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import Outcome

from livprep.errors import StoreError
from livprep.labels import Label
from livprep.store import open_store
from livprep.suggestion import LEVELS_HU, WIDTHS_HU, judge, search, tally_cohort
from livprep.tallies import HU, tally
from livprep.windows import Window

Run = Callable[..., Outcome]


@pytest.mark.parametrize("case_id", ["ircadb-01", "ircadb-07", "lits-048"])
def test_a_tally_counts_every_voxel_of_every_class(small_store: Path, case_id: str) -> None:
    case = open_store(small_store)[case_id]
    hu, labels = case.read_hu(), case.read_labels()
    counted = tally(case)
    for label in Label:
        values, counts = np.unique(hu[labels == label], return_counts=True)
        expected = np.zeros(len(HU), np.int64)
        expected[values.astype(int) + 1024] = counts
        np.testing.assert_array_equal(counted.counts[label], expected)
    assert counted.counts.sum() == hu.size


@pytest.mark.parametrize("window", [Window(40, 220), Window(60, 140), Window(0, 400), Window(-50, 13)])
def test_shares_and_auc_equal_plain_counting(small_store: Path, window: Window) -> None:
    case = open_store(small_store)["ircadb-01"]
    hu, labels = case.read_hu(), case.read_labels()
    counted = tally(case)
    inside = (hu >= window.low_hu) & (hu <= window.high_hu)
    assert counted.kept(window, Label.LIVER) == pytest.approx(inside[labels >= 1].mean())
    assert counted.kept(window, Label.TUMOR) == pytest.approx(inside[labels == 2].mean())
    liver, tumor = (window.apply(hu)[labels == k].astype(int) for k in (1, 2))
    above = (tumor[:, None] > liver[None, ::7]).mean() + (tumor[:, None] == liver[None, ::7]).mean() / 2
    assert counted.separability(window) == pytest.approx(max(above, 1 - above), abs=0.02)  # liver thinned out
    whole = np.concatenate([liver, tumor])
    ranks = np.unique(whole, return_inverse=True)[1]
    counts = np.bincount(ranks)
    mid = (np.cumsum(counts) - (counts - 1) / 2)[ranks]
    u = mid[len(liver) :].sum() - len(tumor) * (len(tumor) + 1) / 2
    auc = u / (len(liver) * len(tumor))
    assert counted.separability(window) == pytest.approx(max(auc, 1 - auc))


def test_patients_without_tumor_have_no_auc(small_store: Path) -> None:
    (verdict,) = judge(tally_cohort(open_store(small_store), "ircadb-07"), [Window(40, 220)])
    (row,) = verdict.rows
    assert math.isnan(row.auc)
    assert row.as_json()["auc"] is None
    assert row.as_json()["tumor_kept"] is None


def test_the_search_is_the_mean_over_cases(small_store: Path) -> None:
    tallies = tally_cohort(open_store(small_store), "ircadb-*")
    found = search(tallies)
    k, m = LEVELS_HU.index(40.0), WIDTHS_HU.index(220.0)
    rows = [verdict.rows[0] for verdict in judge(tallies, [Window(40, 220)])]
    assert found.liver_kept[k, m] == pytest.approx(np.mean([row.liver_kept for row in rows]))
    assert found.auc[k, m] == pytest.approx(np.nanmean([row.auc for row in rows]))
    assert found.cases == 3


def test_nothing_labelled_is_said(small_store: Path) -> None:
    with pytest.raises(StoreError, match="no labelled case that fits") as caught:
        tally_cohort(open_store(small_store), "nobody")
    assert caught.value.code == "STORE_EMPTY"


def test_suggest_prints_a_table_and_draws_the_heat_maps(livprep: Run, small_store: Path, tmp_path: Path) -> None:
    out = tmp_path / "search.png"
    before = open_store(small_store)["ircadb-01"].window_names
    done = livprep(
        "window", "--suggest", "--preset", "liver", "--wl", 0, "--ww", 400, "-o", out, "--store", small_store
    )
    assert done.code == 0
    lines = done.out.splitlines()
    assert lines[0].split() == ["case", "window", "HU", "liver", "tumor", "AUC"]
    assert len(lines) == 1 + 2 * 6 + 4  # a line a window and case, then mean and lowest of each
    assert lines[-2].startswith("mean")
    assert lines[-1].startswith("lowest")
    assert out.read_bytes().startswith(b"\x89PNG")
    assert open_store(small_store)["ircadb-01"].window_names == before


def test_suggest_json_is_an_object_a_line(livprep: Run, small_store: Path) -> None:
    done = livprep("window", "--suggest", "--json", "--cases", "ircadb-0*", "--store", small_store)
    records = [json.loads(line) for line in done.out.splitlines()]
    assert {record["case"] for record in records} == {"ircadb-01", "ircadb-02", "ircadb-07"}
    assert {"case", "patient", "window", "wl", "ww", "liver_kept", "tumor_kept", "auc"} == set(records[0])
    assert {"liver", "lesion", "wide", "abdomen"} <= {record["window"] for record in records}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--suggest", "--blend"), "--suggest looks at windows"),
        (("--blend", "mean", "--preset", "liver"), "the mean 2:3:1 is of three windows, 1 were given"),
        (("--remove", "x", "--adaptive"), "--remove stands alone"),
        (("-o", "x.png"), "-o is of --suggest"),
    ],
)
def test_options_that_do_not_fit(livprep: Run, small_store: Path, options: tuple[str, ...], words: str) -> None:
    done = livprep("window", *options, "--store", small_store)
    assert done.code == 2
    assert words in done.err


@pytest.mark.parametrize(
    ("options", "names"),
    [
        (("--blend",), ["liver-narrow", "liver-custom", "equalized_volume", "blend"]),
        (("--blend", "mean"), ["blend"]),
        (("--blend", "stacked", "--preset", "wide"), ["wide", "equalized_volume"]),
        (("--equalize",), ["equalized_volume"]),
        (("--equalize", "slice"), ["equalized_slice"]),
        (("--clahe",), ["clahe_liver"]),
        (("--clahe", "--wl", "0", "--ww", "400", "--adaptive"), ["clahe_wl0_ww400", "adaptive"]),
        (("--preset", "bone", "--preset", "lungs"), ["bone", "lungs"]),
    ],
)
def test_options_name_their_channels(
    livprep: Run, store_copy: Path, options: tuple[str, ...], names: list[str]
) -> None:
    assert livprep("window", *options, "--cases", "ircadb-01", "--store", store_copy, "--workers", 1).code == 0
    assert open_store(store_copy)["ircadb-01"].window_names == ["wl40_ww220", "wl60_ww140", *names]
    for name in names:
        assert livprep("window", "--remove", name, "--store", store_copy).code == 0
    assert open_store(store_copy)["ircadb-01"].window_names == ["wl40_ww220", "wl60_ww140"]
