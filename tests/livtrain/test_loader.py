from __future__ import annotations

import threading

import numpy as np
import pytest
import torch
from fake_store import BANK, FakeCase, FakeStore, fake_store
from hypothesis import given
from hypothesis import strategies as st

import livtrain
from livprep.errors import StoreError, UsageError
from livprep.windows import Window, WindowBank
from livtrain.dataset import PatchReader, fits_packed, overlap
from livtrain.loader import PatchLoader
from livtrain.sampling import PatchRef

PATCH = (8, 16, 16)


def _read(case: FakeCase, origin: tuple[int, int, int], patch: tuple[int, int, int], bank: WindowBank, source: str):
    image = np.full((len(bank), *patch), 99, np.uint8)
    labels = np.full(patch, 99, np.uint8)
    PatchReader({"a": case}, patch, bank, source).read(PatchRef("a", origin, 0, "liver"), image, labels)  # type: ignore[arg-type]
    return image, labels


@given(
    wl=st.floats(-3000, 5000),
    ww=st.floats(0.5, 6000),
    seed=st.integers(0, 1000),
    origin=st.tuples(*[st.integers(-6, 9)] * 3),
)
def test_channels_equal_the_stored_ones_bit_for_bit(
    wl: float, ww: float, seed: int, origin: tuple[int, int, int]
) -> None:
    rng = np.random.default_rng(seed)
    hu = rng.integers(-2048, 4096, (10, 10, 10)).astype(np.int16)
    labels = rng.integers(0, 3, hu.shape).astype(np.uint8)
    bank = WindowBank((Window(wl, ww, "random"), Window(40, 220)))
    case = FakeCase("a", hu, labels, bank=bank)
    derived, stored = (_read(case, origin, (6, 7, 8), bank, source) for source in ("packed", "stored"))
    np.testing.assert_array_equal(derived[0], stored[0])
    np.testing.assert_array_equal(derived[1], stored[1])
    inside = overlap(origin, (6, 7, 8), hu.shape)
    np.testing.assert_array_equal(derived[0][(slice(None), *inside[1])], bank.apply(hu[inside[0]]))
    np.testing.assert_array_equal(derived[1][inside[1]], labels[inside[0]])


def test_outside_of_the_volume_is_the_low_end_and_background() -> None:
    case = FakeCase("a", np.full((4, 4, 4), 500, np.int16), np.full((4, 4, 4), 2, np.uint8))
    image, labels = _read(case, (-1, -2, 2), (6, 6, 6), BANK, "packed")
    assert (image == 255).sum() == 2 * 4 * 4 * 2
    assert set(np.unique(image)) == {0, 255}
    np.testing.assert_array_equal(labels == 2, image[0] == 255)


def test_only_the_patch_is_read() -> None:
    case = fake_store(1)["fake-00"]
    _read(case, (3, 4, 5), PATCH, BANK, "packed")
    assert case.regions == [(slice(3, 11), slice(4, 20), slice(5, 21))]


def test_windows_beyond_twelve_bits_come_from_the_hu() -> None:
    assert fits_packed(Window(40, 220))
    assert not fits_packed(Window(3000, 220))
    assert not fits_packed(Window(-1000, 100))


def test_a_case_without_labels_reads_as_unlabelled() -> None:
    case = FakeCase("a", np.zeros((8, 8, 8), np.int16), None)
    for source in ("packed", "stored"):
        assert (_read(case, (0, 0, 0), (8, 8, 8), BANK, source)[1] == 15).all()


@pytest.mark.parametrize("workers", [0, 2, 5])
def test_batches_do_not_depend_on_the_workers(workers: int) -> None:
    def batches(count: int, start: int = 0) -> list[livtrain.Batch]:
        with PatchLoader(
            fake_store(), PATCH, 3, stage="tumor", seed=5, start=start, stop=25, workers=count, prefetch=count + 1
        ) as loader:
            return list(loader)

    one, many = batches(1), batches(workers)
    assert [batch.counters for batch in many] == [tuple(range(k, min(k + 3, 25))) for k in range(0, 25, 3)]
    for a, b in zip(one, many, strict=True):
        assert torch.equal(a.image_BCZYX, b.image_BCZYX)
        assert torch.equal(a.labels_BZYX, b.labels_BZYX)
        assert (a.case_ids, a.spacing_mm) == (b.case_ids, b.spacing_mm)
    resumed = batches(workers, start=9)
    assert torch.equal(resumed[0].image_BCZYX, one[3].image_BCZYX)
    assert resumed[0].counters == (9, 10, 11)


def test_a_batch_is_scaled_and_its_own() -> None:
    store = fake_store(1)
    with PatchLoader(store, PATCH, 2, prefetch=1) as loader:
        first = next(loader)
        kept = first.image_BCZYX.clone(), first.labels_BZYX.clone()
        for _ in range(3):
            next(loader)
    assert first.image_BCZYX.dtype == torch.float32
    assert first.image_BCZYX.shape == (2, 2, *PATCH)
    assert first.image_BCZYX.max() == 1.0
    assert first.labels_BZYX.dtype == torch.uint8
    assert torch.equal(first.image_BCZYX, kept[0])
    assert torch.equal(first.labels_BZYX, kept[1])
    assert first.spacing_mm == ((2.0, 1.0, 1.0), (2.0, 1.0, 1.0))


def test_readers_wait_for_the_consumer() -> None:
    store = fake_store(1)
    loader = PatchLoader(store, PATCH, 1, workers=2, prefetch=3)
    next(loader)
    loader.close()
    assert len(store["fake-00"].regions) <= 1 + 3


def test_an_error_of_a_reader_arrives_in_its_place() -> None:
    class Broken(FakeCase):
        def read_packed(self, region: object = None, out: np.ndarray | None = None) -> np.ndarray:
            if len(self.regions) == 3:
                raise StoreError("STORE_CORRUPT", "case a: chunk does not match its crc")
            return super().read_packed(region, out)

    good = fake_store(1)["fake-00"]
    with PatchLoader(FakeStore([Broken("a", good.hu, good.labels)]), PATCH, 1, workers=1) as loader:
        for _ in range(3):
            next(loader)
        with pytest.raises(StoreError, match="case a"):
            next(loader)


def test_closing_ends_the_threads() -> None:
    before = threading.active_count()
    loader = PatchLoader(fake_store(), PATCH, 2, workers=3)
    next(loader)
    assert threading.active_count() > before
    loader.close()
    assert threading.active_count() == before
    assert list(loader) == []


def test_faulty_requests_are_refused() -> None:
    with pytest.raises(UsageError, match="expected >= 1"):
        PatchLoader(fake_store(), PATCH, 0)
    with pytest.raises(UsageError, match="expected >= 1"):
        PatchLoader(fake_store(), PATCH, 1, cases=[])
    with pytest.raises(UsageError, match="workers -1, prefetch 4; expected >= 0 and >= 1"):
        PatchLoader(fake_store(), PATCH, 1, workers=-1)
    with pytest.raises(UsageError, match="livprep window") as caught:
        PatchLoader(fake_store(1, bank=WindowBank(())), PATCH, 1)
    assert caught.value.code == "NO_WINDOWS"
    with pytest.raises(UsageError, match="stage 'kidney'"):
        PatchLoader(fake_store(), PATCH, 1, stage="kidney")


def test_the_package_offers_the_loader() -> None:
    assert livtrain.PatchLoader is PatchLoader
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = livtrain.nothing
