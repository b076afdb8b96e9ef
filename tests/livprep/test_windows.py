"""Windows: the table equals the formula; names and limits."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from livprep.errors import UsageError
from livprep.windows import Window, WindowBank

ALL_HU = np.arange(-32768, 32768).astype(np.int16)

centers = st.floats(-2000, 2000)
widths = st.floats(1e-3, 5000)


@given(centers, widths)
def test_apply_equals_the_formula_on_every_hu(center: float, width: float) -> None:
    window = Window(center, width, "w")
    np.testing.assert_array_equal(window.apply(ALL_HU), window.evaluate(ALL_HU))


@given(centers, widths)
def test_formula_is_dicom_linear_exact(center: float, width: float) -> None:
    # PS3.3 C.11.2.1.3.2 with y from 0 to 255, in exact order of its three branches
    x = ALL_HU.astype(np.float64)
    y = (x - center) / width * 255 + 127.5
    y = np.where(x <= center - width / 2, 0, np.where(x > center + width / 2, 255, y))
    assert np.abs(Window(center, width, "w").evaluate(ALL_HU) - y).max() <= 0.5 + 1e-6


@given(centers, widths)
def test_windows_never_fall(center: float, width: float) -> None:
    assert (np.diff(Window(center, width, "w").apply(ALL_HU).astype(int)) >= 0).all()


def test_readme_window_spans_minus_70_to_150() -> None:
    window = Window(40, 220)
    assert (window.low_hu, window.high_hu, window.name) == (-70, 150, "wl40_ww220")
    hu = np.array([-1024, -70, 40, 41, 150, 3000], np.int16)
    assert window.apply(hu).tolist() == [0, 0, 128, 129, 255, 255]  # 127.5 and 128.66, half to even


def test_apply_takes_any_shape_and_memory_order() -> None:
    hu = np.arange(-60, 60, dtype=np.int16).reshape(4, 5, 6)
    window = Window(0, 100)
    expected = window.evaluate(hu)
    for turned in (hu.transpose(2, 0, 1), hu[::-1, :, ::2], hu[1:2, 2:3, 3:4], hu[:0], np.asfortranarray(hu)):
        np.testing.assert_array_equal(window.apply(turned), window.evaluate(turned))
        assert window.apply(turned).shape == turned.shape
    np.testing.assert_array_equal(window.apply(hu), expected)


def test_apply_refuses_other_types() -> None:
    with pytest.raises(UsageError, match="dtype float32, expected int16"):
        Window(40, 220).apply(np.zeros(3, np.float32))


def test_table_is_shared_and_read_only() -> None:
    assert Window(40, 220).table() is Window(40, 220, "other").table()
    with pytest.raises(ValueError, match="read-only"):
        Window(40, 220).table()[0] = 1


@pytest.mark.parametrize(
    ("center", "width"), [(40, 0), (40, -1), (float("nan"), 220), (40, float("inf")), (float("inf"), 1)]
)
def test_unusable_windows_are_refused(center: float, width: float) -> None:
    with pytest.raises(UsageError, match="expected finite values and a positive width") as caught:
        Window(center, width)
    assert caught.value.code == "WINDOW_INVALID"


@pytest.mark.parametrize("name", ["a/b", "..", ".hidden", "a b", "a\n", "zarr.json", "a\x00"])
def test_names_that_are_no_folder_names_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match="window name") as caught:
        Window(40, 220, name)
    assert caught.value.code == "WINDOW_INVALID"


def test_names_carry_fractions_and_signs() -> None:
    assert Window(-12.5, 300).name == "wl-12.5_ww300"


def test_bank_stacks_channels_in_its_order() -> None:
    bank = WindowBank((Window(60, 140), Window(40, 220)))
    hu = np.arange(-200, 200, dtype=np.int16).reshape(4, 10, 10)
    stacked = bank.apply(hu)
    assert (stacked.shape, stacked.dtype, len(bank)) == ((2, 4, 10, 10), np.uint8, 2)
    for channel, window in zip(stacked, bank, strict=True):
        np.testing.assert_array_equal(channel, window.evaluate(hu))


def test_bank_refuses_two_channels_of_one_name() -> None:
    with pytest.raises(UsageError, match="expected unique names"):
        WindowBank((Window(40, 220, "a"), Window(60, 140, "a")))
