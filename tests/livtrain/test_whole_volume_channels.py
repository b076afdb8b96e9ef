"""Channels that need the whole scan: the loader reads what is stored, prediction makes the same of a raw scan."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from livprep.catalog import load_catalog
from livprep.channels import HIDAJAT_WEIGHTS, Adaptive, Clahe, Equalized, WeightedMean
from livprep.cohort import plan_windows, run_windows
from livprep.errors import UsageError
from livprep.sources import catalog_beside
from livprep.store import Store, open_store
from livprep.windows import Window
from livtrain.augment.channels import apply_windows
from livtrain.checkpoint import Checkpoint
from livtrain.config import Settings, parse_windows, settings_from
from livtrain.dataset import PatchReader
from livtrain.inference import Predictor, StageModel, find_scans
from livtrain.inference.window import Slab
from livtrain.sampling import PatchRef
from livtrain.stages import get_stage
from livtrain.unpack import PACKED_LOW_HU, fits_packed, unpack

BLEND = WeightedMean.of((Window(30, 150), Window(60, 200), Window(0, 400)), HIDAJAT_WEIGHTS)
WHOLE = (Equalized.make(), Equalized.make("slice"), Adaptive.make(), Clahe.after(Window(40, 220)))
PATCH = (16, 16, 16)


@pytest.fixture
def store(store_copy: Path) -> Store:
    opened = open_store(store_copy)
    list(run_windows(opened, plan_windows(opened, [BLEND, *WHOLE]), workers=1))
    return opened


def settings(store: Store, names: str) -> Settings:
    bank = next(iter(store.values())).windows
    return Settings(stage="liver", windows=parse_windows(names, bank), patch_zyx=PATCH, preset="fast-cpu")


def test_a_checkpoints_settings_hold_how_each_channel_is_made(store: Store) -> None:
    bank = next(iter(store.values())).windows
    again = settings_from(settings(store, "stored").model_dump(mode="json"))
    assert again.bank == bank
    assert tuple(again.bank)[2:] == (BLEND, *WHOLE)
    plain = settings(store, "wl40_ww220").model_dump(mode="json")["windows"]
    assert list(plain) == [{"name": "wl40_ww220", "wl": 40.0, "ww": 220.0}]  # as before there were others


def test_the_reader_takes_whole_scan_channels_from_the_store(store: Store) -> None:
    case = store["ircadb-01"]
    reader = PatchReader({"ircadb-01": case}, PATCH, case.windows)
    assert not reader.uses_packed
    image, labels = np.empty((len(case.windows), *PATCH), np.uint8), np.empty(PATCH, np.uint8)
    origin = (case.shape_zyx[0] // 3, 20, 12)
    reader.read(PatchRef("ircadb-01", origin, 0, "anywhere"), image, labels)
    region = tuple(slice(start, start + size) for start, size in zip(origin, PATCH, strict=True))
    for channel, made in zip(case.windows, image, strict=True):
        np.testing.assert_array_equal(made, channel.apply(case.read_hu())[region])


def test_a_blend_comes_from_packed_voxels_to_the_last_bit(store: Store) -> None:
    case = store["ircadb-01"]
    assert fits_packed(BLEND)
    reader = PatchReader({"ircadb-01": case}, case.shape_zyx, type(case.windows)((BLEND,)))
    assert reader.uses_packed
    packed = torch.from_numpy(case.read_packed().view(np.int16))[None]
    image, _ = unpack(packed, type(case.windows)((BLEND,)))
    np.testing.assert_array_equal(image[0, 0].numpy(), case.read_window("blend").astype(np.float32) / np.float32(255))


def test_a_resampled_blend_is_the_mean_of_its_windows() -> None:
    hu = torch.arange(-300.0, 300.0, 0.5).view(1, 1, -1)
    out = torch.empty(1, 1, 1, hu.numel())
    apply_windows(hu - PACKED_LOW_HU, [BLEND], out)
    expected = sum(share * ((hu - w.low_hu) / w.width_hu).clamp(0, 1) for share, w in BLEND.parts)
    torch.testing.assert_close(out[0], expected)


def test_whole_scan_channels_do_not_come_from_packed_voxels(store: Store) -> None:
    case = store["ircadb-01"]
    with pytest.raises(UsageError, match="needs the whole scan") as caught:
        unpack(torch.zeros((1, 2, 2, 2), dtype=torch.int16), type(case.windows)((Equalized.make(),)))
    assert caught.value.code == "WINDOW_INVALID"


class Seen(nn.Module):
    """A network that predicts the middle of the scan as liver; what it saw is looked up elsewhere."""

    def forward(self, x_BCZYX: Tensor) -> Tensor:
        return x_BCZYX[:, :1] - 0.5


@pytest.mark.parametrize("stage", ["liver", "tumor"])
def test_prediction_makes_the_stored_channels_of_the_raw_scan(
    store: Store, phantom_ircadb: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    """Of a stored case, of its raw DICOM, whole and in the box around the liver."""
    seen: list[np.ndarray] = []

    def capture(network: nn.Module, image_CZYX: np.ndarray, *rest: Any, **options: Any) -> Iterator[Slab]:
        seen.append(image_CZYX)
        classes = 1
        values = np.zeros((classes, *image_CZYX.shape[1:]), np.float32)
        z, y, x = (size // 2 for size in values.shape[1:])
        values[:, z - 3 : z + 3, y - 6 : y + 6, x - 6 : x + 6] = 0.9
        yield 0, values

    monkeypatch.setattr("livtrain.inference.predictor.window_slabs", capture)
    chosen = settings(store, "stored")
    liver = StageModel(get_stage("liver"), Seen(), chosen, store.preparation)
    tumor = StageModel(get_stage("tumor"), Seen(), chosen.replace(stage="tumor"), store.preparation)
    predictor = Predictor([liver], [tumor] if stage == "tumor" else [])
    catalog = load_catalog(catalog_beside([phantom_ircadb]))
    scans, _ = find_scans([str(phantom_ircadb)], store.path, catalog, "ircadb-01")
    stored, _ = find_scans(["ircadb-01"], store.path, catalog)
    case = store["ircadb-01"]
    expected = np.stack([case.read_window(name) for name in case.window_names])
    for scan in (*scans, *stored):
        seen.clear()
        predictor.predict(scan.load())
        np.testing.assert_array_equal(seen[0], expected)
        if stage == "tumor":
            box = seen[1]
            assert box.shape[1:] != expected.shape[1:]
            assert occurs(box, expected)


def occurs(box_CZYX: np.ndarray, whole_CZYX: np.ndarray) -> bool:
    """Whether a box of channels is a part of the whole, at any place."""
    sizes = box_CZYX.shape[1:]
    spans = [range(whole - size + 1) for whole, size in zip(whole_CZYX.shape[1:], sizes, strict=True)]
    return any(
        np.array_equal(box_CZYX, whole_CZYX[:, z : z + sizes[0], y : y + sizes[1], x : x + sizes[2]])
        for z in spans[0]
        for y in spans[1]
        for x in spans[2]
        if box_CZYX[0, 0, 0, 0] == whole_CZYX[0, z, y, x]
    )


def test_checkpoints_without_functions_still_load() -> None:
    old = {"name": "wl40_ww220", "wl": 40.0, "ww": 220.0}
    loaded = settings_from(Settings(stage="liver", preset="fast-cpu").replace(windows=(old,)).model_dump(mode="json"))
    assert tuple(loaded.bank) == (Window(40, 220),)
    assert Checkpoint is not None
