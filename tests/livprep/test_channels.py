"""Channels beyond one window: defined, recorded, made again, and the same wherever they are made."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from building import tree_hash
from conftest import Outcome
from hypothesis import given
from hypothesis import strategies as st

from livprep.channels import HIDAJAT_WEIGHTS, Adaptive, Clahe, Equalized, WeightedMean, channel_of
from livprep.cohort import plan_windows, remove_windows, run_windows
from livprep.errors import UsageError
from livprep.schema import WindowMeta
from livprep.store import open_store
from livprep.windows import Window, WindowBank

Run = Callable[..., Outcome]
ALL_HU = np.arange(-32768, 32768).astype(np.int16)
BLEND = WeightedMean.of((Window(30, 150), Window(60, 200), Window(0, 400)), HIDAJAT_WEIGHTS)
EVERY = (
    Window(40, 220),
    BLEND,
    Equalized.make(),
    Equalized.make("slice"),
    Adaptive.make(),
    Clahe.after(Window(40, 220)),
)


def volume(shape: tuple[int, int, int] = (5, 32, 40), seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    hu = rng.normal(60, 40, shape)
    hu[:, :, :10] = -1000
    hu[:, :4] += 700
    return hu.astype(np.int16)


def test_the_mean_is_the_mean_of_the_windowed_images_2_3_1() -> None:
    parts = [np.clip((ALL_HU.astype(float) - w.low_hu) / w.width_hu, 0, 1) for _, w in BLEND.parts]
    expected = (2 * parts[0] + 3 * parts[1] + 1 * parts[2]) / 6
    np.testing.assert_allclose(BLEND.apply(ALL_HU), 255 * expected, atol=0.5 + 1e-6)
    np.testing.assert_array_equal(BLEND.apply(ALL_HU), BLEND.evaluate(ALL_HU))
    assert (BLEND.low_hu, BLEND.high_hu, BLEND.is_local) == (-200, 200, True)


@given(st.floats(-0.3, 0.3), st.floats(0.5, 2))
def test_a_moved_mean_moves_each_of_its_windows(shift: float, factor: float) -> None:
    for (_, old), (_, new) in zip(BLEND.parts, BLEND.moved(shift, factor).parts, strict=True):
        assert new.center_hu == old.center_hu + old.width_hu * shift
        assert new.width_hu == old.width_hu * factor


@pytest.mark.parametrize("weights", [(2.0, 3.0), (2.0, 3.0, 0.0), (1.0, -1.0, 1.0)])
def test_a_mean_needs_a_positive_weight_for_each_window(weights: tuple[float, ...]) -> None:
    with pytest.raises(UsageError, match="expected one positive weight for each of at least two windows") as caught:
        WeightedMean.of((Window(30, 150), Window(60, 200), Window(0, 400)), weights)
    assert caught.value.code == "WINDOW_INVALID"


def test_equalized_is_fastais_definition() -> None:
    hu = volume()
    ordered, count = np.sort(hu.ravel()), hu.size
    at = np.concatenate([[0.001], np.arange(100) / 100 + 1 / 200, [0.999]])
    breaks = np.unique(ordered[(count * at).astype(int)])
    expected = np.rint(255 * np.interp(hu, breaks, np.linspace(0, 1, len(breaks))))
    np.testing.assert_array_equal(Equalized.make().apply(hu), expected)
    assert Equalized.make().measured(hu) == {"low_hu": float(breaks[0]), "high_hu": float(breaks[-1])}


def test_equalized_by_slice_is_each_slice_alone() -> None:
    hu = volume()
    whole, sliced = Equalized.make(), Equalized.make("slice")
    for z in range(len(hu)):
        np.testing.assert_array_equal(sliced.apply(hu)[z], whole.apply(hu[z : z + 1])[0])
    hu[0] += 100  # the same tissue gets another value in the next slice, which is why this is not the default
    assert (sliced.apply(hu)[1] == sliced.apply(volume())[1]).all()
    assert (whole.apply(hu)[1] != whole.apply(volume())[1]).any()


@given(st.integers(-1024, 3071))
def test_a_constant_volume_is_no_fault(value: int) -> None:
    hu = np.full((2, 9, 9), value, np.int16)
    for channel in EVERY:
        assert np.unique(channel.apply(hu)).size == 1


def test_adaptive_follows_the_scan() -> None:
    hu = volume()
    found = Adaptive.make().window(hu)
    np.testing.assert_array_equal(Adaptive.make().apply(hu), found.apply(hu))
    soft = np.sort(hu[(hu >= -20) & (hu <= 280)])
    assert found.low_hu == soft[int(0.05 * (soft.size - 1))] - 20
    assert found.high_hu == soft[int(0.98 * (soft.size - 1))] + 20
    brighter = np.where(hu > -500, hu + 50, hu).astype(np.int16)
    assert Adaptive.make().window(brighter).center_hu > found.center_hu + 20
    air = np.full((2, 4, 4), -1000, np.int16)
    assert Adaptive.make().window(air).width_hu == Adaptive.make().width_hu


def test_clahe_is_opencvs_after_the_window_slice_by_slice() -> None:
    import cv2

    hu = volume()
    window = Window(40, 220)
    tool = cv2.createCLAHE(clipLimit=2.0, tileGridSize=(8, 8))
    made = Clahe.after(window).apply(hu)
    for z in range(len(hu)):
        np.testing.assert_array_equal(made[z], tool.apply(window.apply(hu)[z]))


@pytest.mark.parametrize("channel", EVERY[2:], ids=lambda channel: channel.name)
def test_a_channel_of_the_whole_volume_says_so(channel: Window) -> None:
    assert not channel.is_local
    assert not WindowBank((Window(40, 220), channel)).is_local
    for refused in (channel.table, lambda: channel.moved(0.1, 1.0)):
        with pytest.raises(UsageError, match=channel.name):
            refused()
    with pytest.raises(UsageError, match="expected int16 HU"):
        channel.apply(np.zeros((4, 4), np.int16))


@pytest.mark.parametrize("channel", EVERY, ids=lambda channel: channel.name)
def test_a_record_makes_the_same_channel_again(channel: Window) -> None:
    meta = WindowMeta.of(channel, 3, volume())
    again = WindowMeta.model_validate(json.loads(json.dumps(meta.model_dump(mode="json"))))
    assert again.channel() == channel
    np.testing.assert_array_equal(again.channel().apply(volume()), channel.apply(volume()))


def test_a_linear_window_is_recorded_as_in_the_first_stores() -> None:
    record = WindowMeta.of(Window(40, 220), 0, volume()).model_dump(mode="json")
    assert record == {"name": "wl40_ww220", "wl": 40.0, "ww": 220.0, "function": "linear_exact", "order": 0}


@pytest.mark.parametrize(
    ("function", "parameters"),
    [("magic", {}), ("equalized", {"depth": 3}), ("weighted_mean", {"weighted": [[1]]}), ("linear_exact", {"a": 1})],
)
def test_unknown_records_are_refused(function: str, parameters: dict[str, object]) -> None:
    with pytest.raises(UsageError, match="expected linear_exact, weighted_mean") as caught:
        channel_of("c", 0, 1, function, parameters)
    assert caught.value.code == "WINDOW_INVALID"


def test_adding_and_removing_touches_nothing_else(store_copy: Path) -> None:
    store = open_store(store_copy)
    before = {case: tree_hash(store[case].path / "hu") for case in store}
    windows = {case: tree_hash(store[case].path / "windows/wl40_ww220") for case in store}
    everything = {path: path.read_bytes() for path in store_copy.rglob("*") if path.is_file() and "cases" in path.parts}
    receipts = list(run_windows(store, plan_windows(store, EVERY[1:]), workers=1))
    assert {receipt.status for receipt in receipts} == {"published"}
    assert {case: tree_hash(store[case].path / "hu") for case in store} == before
    assert {case: tree_hash(store[case].path / "windows/wl40_ww220") for case in store} == windows
    for case in store.values():
        assert case.window_names[:2] == ["wl40_ww220", "wl60_ww140"]
        for channel in EVERY[1:]:
            np.testing.assert_array_equal(case.read_window(channel.name), channel.apply(case.read_hu()))
        assert tuple(case.windows)[2:] == EVERY[1:]
    assert {r.status for r in run_windows(store, plan_windows(store, EVERY[1:]), workers=1)} == {"unchanged"}
    for channel in EVERY[1:]:
        list(remove_windows(store, channel.name))
    assert {path: path.read_bytes() for path in everything} == everything


def test_another_channel_of_a_taken_name_is_refused(store_copy: Path) -> None:
    store = open_store(store_copy)
    list(run_windows(store, plan_windows(store, [BLEND]), workers=1))
    other = WeightedMean.of((Window(30, 150), Window(60, 200), Window(0, 300)), HIDAJAT_WEIGHTS)
    with pytest.raises(UsageError, match="window blend is stored with WL 0 WW 400 HU, weighted_mean") as caught:
        plan_windows(store, [other])
    assert caught.value.code == "STORE_WINDOW_EXISTS"


def test_verify_computes_every_channel_again(livprep: Run, store_copy: Path) -> None:
    store = open_store(store_copy)
    list(run_windows(store, plan_windows(store, EVERY[1:]), workers=1))
    assert livprep("verify", "--deep", "--store", store_copy).code == 0
