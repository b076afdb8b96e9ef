"""Prediction's way in and out on the real patients: the stored channels, and labels back on the source's grid."""

from __future__ import annotations

import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from torch import nn

from livprep.catalog import load_catalog
from livprep.cohort import IngestRequest, plan_ingest, plan_windows, run_ingest, run_windows
from livprep.formats.nifti import write_labels
from livprep.geometry import Geometry
from livprep.labels import Label
from livprep.prepare import Preparation, prepare_labels, restore
from livprep.sources import discover, read_case
from livprep.store import open_store
from livprep.windows import Window
from livtrain.config import Settings, WindowSetting
from livtrain.inference import StageModel, find_scans
from livtrain.inference.inputs import ScanInputs
from livtrain.stages import get_stage

DATA = Path(os.environ.get("LIVPREP_REAL_DATA") or Path(__file__).resolve().parents[3] / "shared" / "data")
CASES = ("ircadb-01", "ircadb-07", "lits-028")
CATALOG = load_catalog()
LEAST_DICE = 0.98

pytestmark = [
    pytest.mark.real,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(not (DATA / "ircadb").is_dir(), reason=f"no real patients at {DATA} (LIVPREP_REAL_DATA)"),
]


@pytest.mark.parametrize("spacing", [(None, None, None), (1.5, 1.5, 1.5)])
def test_the_networks_input_is_the_stored_channels(
    tmp_path: Path, spacing: tuple[float | None, float | None, float | None]
) -> None:
    torch.set_num_threads(2)
    preparation, windows = Preparation(spacing_mm=spacing), [Window(40, 220), Window(60, 140)]
    sources = (DATA / "ircadb", DATA / "lits")
    list(run_ingest(plan_ingest(IngestRequest(sources, tmp_path / "l.zarr", preparation=preparation, workers=1))))
    store = open_store(tmp_path / "l.zarr")
    list(run_windows(store, plan_windows(store, windows), workers=1))
    settings = Settings(stage="liver", windows=tuple(WindowSetting.of(window) for window in windows))
    model = StageModel(get_stage("liver"), nn.Identity(), settings, preparation)
    scans, _ = find_scans([str(source) for source in sources], tmp_path / "none", CATALOG)
    assert [scan.name for scan in scans] == sorted(store) == list(CASES)
    for scan in scans:
        stored = np.stack([store[scan.name].read_window(window.name) for window in windows])
        np.testing.assert_array_equal(ScanInputs(scan.load()).channels(model), stored)


@pytest.mark.parametrize("name", CASES)
def test_labels_come_back(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Identical at native spacing; from 1.5 mm the liver has a Dice of at least 0.98 with itself."""
    cases = {case.case_id: case for case in discover([DATA / "ircadb", DATA / "lits"], CATALOG).cases}
    found = read_case(cases[name], CATALOG)
    assert found.volume.label_map is not None
    labels, source = found.volume.label_map.labels, found.volume.geometry
    scores = {}
    for spacing in (None, 1.5):
        stored = prepare_labels(labels, source, Preparation(spacing_mm=(spacing,) * 3))
        indicators = np.stack([stored.labels >= Label.LIVER, stored.labels == Label.TUMOR]).astype(np.float32)
        liver, tumor = restore(indicators, stored.geometry, source) >= 0.5
        if spacing is None:
            np.testing.assert_array_equal(liver, labels >= Label.LIVER)
            np.testing.assert_array_equal(tumor, labels == Label.TUMOR)
        else:
            pairs = {"liver": (liver, labels >= Label.LIVER), "tumor": (tumor, labels == Label.TUMOR)}
            for structure, (p, r) in pairs.items():
                if r.any():
                    scores[structure] = 2 * int((p & r).sum()) / int(p.sum() + r.sum())
    with capsys.disabled():
        print(f"\n{name}: 1.5 mm and back: " + ", ".join(f"{key} Dice {value:.4f}" for key, value in scores.items()))
    assert scores["liver"] >= LEAST_DICE
    header = Geometry.from_affine_ras(np.asarray(found.header_affine_ras), source.shape_zyx)
    for kind, geometry in (("repaired", source), ("source", header)):
        write_labels(tmp_path / f"{kind}.nii", labels, geometry)
        written = nib.load(tmp_path / f"{kind}.nii")
        # NIfTI-1 holds float32, which has steps of 3e-5 mm at 300 mm
        np.testing.assert_array_equal(written.affine, geometry.affine_ras.astype(np.float32))
        np.testing.assert_allclose(written.affine, geometry.affine_ras, rtol=1e-6, atol=1e-6)
        np.testing.assert_array_equal(np.asarray(written.dataobj).transpose(2, 1, 0), labels)
    if name == "lits-028":
        np.testing.assert_array_equal(written.affine, nib.load(DATA / "lits" / "volume-28.nii.gz").affine)
