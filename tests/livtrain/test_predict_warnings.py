"""What `predict` says of a scan that it segments all the same."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

from livcli.livtrain_predict import predict
from livprep.catalog import load_catalog
from livprep.errors import CODES, UsageError
from livprep.formats.nifti import write_nifti
from livprep.geometry import Geometry
from livprep.prepare import Preparation
from livtrain.checkpoint import Checkpoint
from livtrain.config import Settings, WindowSetting
from livtrain.inference import find_scans
from livtrain.networks import build_network


def _run(folder: Path) -> Path:
    """A network that finds no liver anywhere."""
    window = WindowSetting(name="wide", wl=0.0, ww=400.0)
    settings = Settings(stage="liver", width=8, windows=(window,), patch_zyx=(8, 16, 16), overlap=0.0)
    network = build_network(settings.network, 1, 1, settings.width)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
        list(network.parameters())[-1].fill_(-9.0)
    folder.mkdir(parents=True)
    Checkpoint(network.state_dict(), settings, Preparation().as_dict(), step=1).save(folder / "best.pt")
    return folder


def _predict(folder: Path, *more: str) -> Result:
    arguments = [str(folder / "ct.nii.gz"), "-o", str(folder / "out"), "--liver", str(_run(folder / "run"))]
    result = CliRunner().invoke(predict, [*arguments, "--device", "cpu", *more], standalone_mode=False)
    assert result.exception is None, result.output
    return result


def _scan_of_unknown_sides(path: Path) -> None:
    """Neither sform nor qform, and values without their intercept."""
    hu = np.random.default_rng(0).choice([24, 1064], size=(20, 16, 12)).astype(np.int16)
    image = nib.Nifti1Image(hu, np.eye(4))
    image.set_sform(None, 0)
    image.set_qform(None, 0)
    nib.save(image, path)


def test_what_reading_found_and_an_empty_prediction_are_told(tmp_path: Path) -> None:
    _scan_of_unknown_sides(tmp_path / "ct.nii.gz")
    result = _predict(tmp_path, "--json")
    (receipt,) = map(json.loads, result.stdout.splitlines())
    assert receipt["status"] == "predicted"
    codes = [warning.split(":")[0] for warning in receipt["warnings"]]
    assert {"NIFTI_NO_AFFINE", "LIVER_NOT_FOUND"} <= set(codes) <= set(CODES)
    assert any(code.startswith("HU_") for code in codes)


def test_people_read_the_warnings_beside_the_line(tmp_path: Path) -> None:
    _scan_of_unknown_sides(tmp_path / "ct.nii.gz")
    result = _predict(tmp_path)
    assert "predicted" in result.stdout
    assert "NIFTI_NO_AFFINE" not in result.stdout
    assert "  NIFTI_NO_AFFINE: neither sform nor qform is set" in result.stderr


def test_two_scans_of_one_name_are_refused_with_a_way_out(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        write_nifti(tmp_path / folder / "ct.nii", np.zeros((2, 3, 4), dtype=np.int16), Geometry((2, 3, 4), (1, 1, 1)))
    sources = [str(tmp_path / folder) for folder in ("a", "b")]
    with pytest.raises(UsageError, match=r"ct given twice.*into different folders"):
        find_scans(sources, tmp_path / "none", load_catalog())
