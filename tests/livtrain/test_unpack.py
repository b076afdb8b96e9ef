"""Channels from the packed array: equal to the stored ones on each path, to the last bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fake_store import BANK
from hypothesis import given
from hypothesis import strategies as st

from livprep.errors import UsageError
from livprep.store import pack
from livprep.windows import Window, WindowBank
from livtrain.unpack import CtNormalization, channel_table, gather, unit_interval, unpack, unpack_arrays, unpack_into

HU = np.arange(-1024, 3072, dtype=np.int16).reshape(1, 16, 16, 16)


@given(
    low=st.floats(-1024, 3000),
    part=st.floats(0.001, 1),
    labelled=st.booleans(),
    seed=st.integers(0, 100),
)
def test_every_path_gives_the_stored_channels(low: float, part: float, labelled: bool, seed: int) -> None:
    width = max(0.5, (3071 - low) * part * 0.999)
    bank = WindowBank((Window(low + width / 2, width, "random"), Window(40, 220)))
    rng = np.random.default_rng(seed)
    hu = rng.permutation(HU.ravel()).reshape(2, 8, 16, 16)
    labels = rng.integers(0, 3, hu.shape).astype(np.uint8) if labelled else None
    packed = torch.from_numpy(pack(hu, labels))
    expected = torch.from_numpy(np.stack([bank.apply(each) for each in hu])).float() / 255
    image, found = unpack(packed, bank)  # the compiled kernel
    assert torch.equal(image, expected)
    assert image.dtype == torch.float32
    assert torch.equal(found, torch.full(hu.shape, 15).byte() if labels is None else torch.from_numpy(labels))
    other, others = torch.empty_like(image), torch.empty_like(found)
    gather(packed, torch.from_numpy(channel_table(bank).copy()), other, others)  # what runs on a GPU
    assert torch.equal(other, image)
    assert torch.equal(others, found)
    stored = torch.from_numpy(np.stack([bank.apply(each) for each in hu]))
    assert torch.equal(unit_interval(stored), image)


def test_signed_bits_are_the_same_bits() -> None:
    packed = torch.from_numpy(pack(HU, None))
    for first, second in zip(unpack(packed, BANK), unpack(packed.view(torch.int16), BANK), strict=True):
        assert torch.equal(first, second)


def test_normalization_as_in_nnunet() -> None:
    table = CtNormalization(-17, 201, 99.4, 39.4).table()
    packed = pack(HU, np.full(HU.shape, 2, np.uint8))
    image, labels = np.empty((1, 1, *HU.shape[1:]), np.float32), np.empty(HU.shape, np.int16)
    unpack_arrays(packed, table, image, labels)
    np.testing.assert_allclose(image[:, 0], (np.clip(HU, -17, 201) - 99.4) / 39.4, rtol=1e-5)
    assert (labels == 2).all()
    on_tensors = torch.empty(image.shape), torch.empty(HU.shape, dtype=torch.int16)
    unpack_into(torch.from_numpy(packed), table, *on_tensors)
    assert np.array_equal(on_tensors[0], image)


@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize("shape", [(2, 4, 32, 32), (1, 3, 29, 31), (1, 1, 2, 3)])
def test_computed_and_looked_up_values_are_the_same_wherever_they_lie(shape: tuple[int, ...], shift: int) -> None:
    """Whole blocks leave past the caches where they may, ends and odd places do not."""
    rng, normalization = np.random.default_rng(0), CtNormalization(-17, 201, 99.4, 39.4)
    packed = rng.integers(0, 1 << 16, shape, dtype=np.uint16)
    voxels = packed.size
    results = []
    for numbers in (None, normalization):
        image = np.empty(voxels + 64, np.float32)[shift : shift + voxels].reshape(shape[0], 1, *shape[1:])
        labels = np.empty(voxels + 64, np.int16)[shift : shift + voxels].reshape(shape)
        unpack_arrays(packed, normalization.table(), image, labels, numbers)
        results.append((image, labels))
    for image, labels in results:
        assert np.array_equal(image[:, 0], normalization.table()[0][packed & 4095])
        assert np.array_equal(labels, packed >> 12)


def test_windows_beyond_twelve_bits_are_refused() -> None:
    with pytest.raises(UsageError, match=r"wl3000_ww220 spans 2890 \.\.\. 3110 HU, the packed array holds -1024"):
        channel_table(WindowBank((Window(3000, 220),)))
