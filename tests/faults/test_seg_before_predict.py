"""Series that no DICOM segmentation can refer to are rejected before any time is spent on them."""

from __future__ import annotations

from pathlib import Path

import corpus_dicom
import pytest
import torch
from torch import Tensor, nn

from livprep.catalog import load_catalog
from livprep.prepare import Preparation
from livtrain.config import Settings, WindowSetting
from livtrain.inference import Predictor, StageModel, find_scans, predict_folder
from livtrain.stages import get_stage


class Counting(nn.Module):
    """Counts its calls."""

    calls = 0

    def forward(self, x_BCZYX: Tensor) -> Tensor:
        self.calls += 1
        return x_BCZYX


def test_a_multi_frame_scan_is_rejected_before_prediction(tmp_path: Path) -> None:
    pytest.importorskip("highdicom")
    torch.set_num_threads(2)
    (tmp_path / "ct").mkdir()
    corpus_dicom.enhanced(lambda data: None)(tmp_path / "ct")
    windows = (WindowSetting(name="wide", wl=0.0, ww=400.0),)
    settings = Settings(stage="liver", windows=windows, patch_zyx=(8, 8, 8))
    network = Counting()
    predictor = Predictor([StageModel(get_stage("liver"), network, settings, Preparation())])
    scans, _ = find_scans([str(tmp_path / "ct")], tmp_path, load_catalog())
    (receipt,) = predict_folder(scans, predictor, tmp_path / "out", form="dicom-seg")
    assert (receipt.status, receipt.code) == ("rejected", "DICOM_SEG")
    assert "an enhanced object, expected one slice a file" in receipt.detail
    assert network.calls == 0
    (receipt,) = predict_folder(scans, predictor, tmp_path / "out")
    assert receipt.status == "predicted"
    assert network.calls > 0
