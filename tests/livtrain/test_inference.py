"""The sliding window, the two stages, and predictions as files."""

from __future__ import annotations

import json
import threading
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from building import edited, plain_slice, write_series
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from livprep.catalog import load_catalog
from livprep.cohort import IngestRequest, plan_ingest, run_ingest
from livprep.errors import GeometryError, LivError, RunError, SourceError, StoreError, UsageError
from livprep.formats.nifti import write_labels, write_nifti
from livprep.geometry import Geometry
from livprep.prepare import Preparation
from livprep.splits import Split
from livprep.store import open_store
from livprep.synthesis import write_ircadb
from livprep.volume import LabelledVolume, Volume
from livtrain.checkpoint import Checkpoint
from livtrain.config import Settings, WindowSetting
from livtrain.evaluate.references import read_label_file
from livtrain.inference import (
    LoadedScan,
    Prediction,
    PredictOptions,
    Predictor,
    StageModel,
    find_scans,
    load_stage,
    predict_folder,
    sliding_window,
)
from livtrain.inference.patches import window_starts
from livtrain.inference.scans import SourceScan
from livtrain.networks import build_network
from livtrain.stages import get_stage

torch.set_num_threads(2)
CATALOG = load_catalog()
WINDOW = WindowSetting(name="wide", wl=0.0, ww=400.0)  # [-200, 200] HU
RAS = ((-1.0, 0.0, 0.0), (0.0, -1.0, 0.0), (0.0, 0.0, 1.0))


class Pointwise(nn.Module):
    """A network whose logits are a function of the first channel of each voxel; counts its calls."""

    def __init__(self, logits: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.logits, self.calls = logits, 0

    def forward(self, x_BCZYX: Tensor) -> Tensor:
        self.calls += len(x_BCZYX)
        return self.logits(x_BCZYX[:, :1])


class Neighborhood(nn.Module):
    """A fixed random convolution, so that a voxel's result depends on its patch."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.conv = nn.Conv3d(channels, classes, 5, padding=2)

    def forward(self, x_BCZYX: Tensor) -> Tensor:
        values: Tensor = self.conv(x_BCZYX)
        return values


@given(length=st.integers(1, 300), size=st.integers(1, 64), overlap=st.floats(0, 0.9))
def test_windows_cover_the_axis_evenly(length: int, size: int, overlap: float) -> None:
    length = max(length, size)
    starts = window_starts(length, size, overlap)
    assert (starts[0], starts[-1]) == (0, length - size)
    steps = np.diff(starts)
    assert (steps <= max(int(size * (1 - overlap)), 1)).all()
    assert steps.size == 0 or steps.max() - steps.min() <= 1


@pytest.mark.parametrize("shape", [(20, 30, 26), (5, 40, 9), (8, 16, 16)])
@pytest.mark.parametrize("batch", [1, 3])
def test_a_pointwise_network_is_reproduced_at_every_voxel(shape: tuple[int, int, int], batch: int) -> None:
    image = np.random.default_rng(0).integers(0, 256, (2, *shape), dtype=np.uint8)
    p = sliding_window(Pointwise(lambda x: 4 * x - 2), image, (8, 16, 16), batch=batch)
    assert (p.dtype, p.shape) == (np.float32, (1, *shape))
    assert p[0] == pytest.approx(1 / (1 + np.exp(2 - 4 * (image[0] / 255.0))), abs=1e-5)


def test_several_maps_pass_a_softmax_and_floats_are_taken_as_they_are() -> None:
    image = torch.rand(1, 9, 20, 17)
    p = sliding_window(Pointwise(lambda x: torch.cat([x, 2 * x, -x], dim=1)), image, (8, 16, 16))
    assert p.sum(axis=0) == pytest.approx(1, abs=1e-5)
    assert p == pytest.approx(torch.softmax(torch.cat([image, 2 * image, -image]), dim=0).numpy(), abs=1e-5)


@pytest.mark.parametrize("classes", [1, 3])
def test_overlapping_patches_are_averaged_with_gaussian_weights(classes: int) -> None:
    network, image = Neighborhood(2, classes).eval(), torch.rand(2, 14, 24, 16)
    offsets = [(np.arange(n) - (n - 1) / 2) / (n / 8) for n in (8, 16, 16)]
    z, y, x = np.meshgrid(*offsets, indexing="ij")
    weight = np.exp(-(z**2 + y**2 + x**2) / 2)
    total, weights = np.zeros((classes, 14, 24, 16)), np.zeros((14, 24, 16))
    for z0 in (0, 3, 6):  # evenly spread with steps of at most 4 and 8
        for y0 in (0, 8):
            part = (slice(None), slice(z0, z0 + 8), slice(y0, y0 + 16), slice(0, 16))
            with torch.no_grad():
                logits = network(image[part][None])
            p = (torch.sigmoid(logits) if classes == 1 else torch.softmax(logits, dim=1))[0].double().numpy()
            total[part] += weight * p
            weights[part[1:]] += weight
    assert sliding_window(network, image, (8, 16, 16), 0.5) == pytest.approx(total / weights, abs=1e-5)


def test_patches_of_air_share_one_forward_pass_and_change_nothing() -> None:
    image = np.zeros((2, 16, 48, 48), dtype=np.uint8)
    image[:, :8, :16, :16] = np.random.default_rng(1).integers(1, 256, (2, 8, 16, 16))
    network = Neighborhood(2, 1).eval()
    p = sliding_window(network, image, (8, 16, 16), 0.0)
    tiles = [(z, y, x) for z in (0, 8) for y in (0, 16, 32) for x in (0, 16, 32)]
    for z, y, x in tiles:  # without overlap, each tile is one forward pass
        tile = torch.from_numpy(image[:, z : z + 8, y : y + 16, x : x + 16]).float()[None] / 255
        with torch.no_grad():
            expected = torch.sigmoid(network(tile))[0].numpy()
        assert p[:, z : z + 8, y : y + 16, x : x + 16] == pytest.approx(expected, abs=1e-6)
    counting = Pointwise(lambda x: x)
    sliding_window(counting, image, (8, 16, 16), 0.0)
    assert counting.calls == 2


def test_mirroring_makes_the_result_mirror_symmetric() -> None:
    network, image = Neighborhood(1, 1).eval(), torch.rand(1, 8, 16, 16)
    plain = sliding_window(network, image, (8, 16, 16))
    averaged = sliding_window(network, image, (8, 16, 16), tta=True)
    assert not np.allclose(plain, averaged, atol=1e-3)
    flipped = sliding_window(network, image.flip((1, 3)), (8, 16, 16), tta=True)
    assert flipped == pytest.approx(np.flip(averaged, (1, 3)), abs=1e-6)


def test_a_network_in_training_is_left_in_training() -> None:
    network = build_network("resunet", 1, 1, 4).train()
    first, second = (sliding_window(network, np.ones((1, 8, 8, 8), dtype=np.uint8), (8, 8, 8)) for _ in range(2))
    assert np.array_equal(first, second)  # no dropout
    assert network.training


@pytest.mark.parametrize(
    ("shape", "overlap", "batch"), [((8, 8, 8), 0.5, 1), ((1, 8, 8, 8), 1.0, 1), ((1, 8, 8, 8), 0.5, 0)]
)
def test_misuse_of_the_window_is_named(shape: tuple[int, ...], overlap: float, batch: int) -> None:
    with pytest.raises(UsageError, match="expected \\(channel, z, y, x\\), an overlap in"):
        sliding_window(nn.Identity(), np.zeros(shape, dtype=np.uint8), (8, 8, 8), overlap, batch=batch)


# --- the stages ------------------------------------------------------------------------------------------------

SPACING = (3.0, 1.0, 1.0)


def _model(stage: str, logits: Callable[[Tensor], Tensor], preparation: Preparation | None = None) -> StageModel:
    settings = Settings(stage=stage, windows=(WINDOW,), patch_zyx=(8, 16, 16), batch=2)
    return StageModel(get_stage(stage), Pointwise(logits), settings, preparation or Preparation())


def _liver(x: Tensor) -> Tensor:
    return 100 * (x - 0.625)  # above 50 HU


def _tumor(x: Tensor) -> Tensor:
    return 100 * (0.1 - (x - 0.5).abs())  # within 40 HU of 0


def _multiclass(x: Tensor) -> Tensor:
    return torch.cat([torch.zeros_like(x), _liver(x), _tumor(x)], dim=1)


def _scene() -> tuple[np.ndarray, np.ndarray]:
    """HU (z, y, x) and true labels: a liver with a tumor, a second bright organ, and tumor-like decoys outside."""
    hu = np.full((14, 48, 56), -100, dtype=np.int16)
    truth = np.zeros(hu.shape, dtype=np.uint8)
    hu[3:11, 8:34, 6:34], truth[3:11, 8:34, 6:34] = 100, 1
    hu[5:9, 14:24, 12:22], truth[5:9, 14:24, 12:22] = 0, 2
    hu[4:6, 40:46, 44:52] = 100  # not the largest bright organ
    hu[5:9, 20:26, 37:42] = 0  # 3 mm from the liver: the tumor network sees it, the liver does not hold it
    hu[2:12, 2:6, 44:56] = 0  # further than 10 mm
    return hu, truth


def _scan(geometry: Geometry | None = None, name: str = "scan") -> tuple[LoadedScan, np.ndarray]:
    hu, truth = _scene()
    geometry = geometry or Geometry(hu.shape, SPACING)
    return LoadedScan(name, LabelledVolume(Volume(hu, geometry)), None, geometry, geometry), truth


def test_two_stages_find_liver_and_tumor_and_no_decoy() -> None:
    scan, truth = _scan()
    prediction = Predictor([_model("liver", _liver)], [_model("tumor", _tumor)]).predict(scan)
    assert np.array_equal(prediction.labels, truth)
    assert prediction.labels.dtype == np.uint8
    assert prediction.probabilities == {}


def test_the_tumor_network_sees_the_predicted_liver_and_10_mm_only() -> None:
    scan, truth = _scan()
    options = PredictOptions(probabilities=True)
    prediction = Predictor([_model("liver", _liver)], [_model("tumor", _tumor)], options).predict(scan)
    tumor = prediction.probabilities["tumor"]
    assert tumor[truth == 2].min() > 0.9
    assert tumor[5:9, 20:26, 37:42].min() > 0.9  # 3 mm away: seen, but not in the labels
    assert tumor[2:12, 2:6, 44:56].max() == 0
    assert prediction.probabilities["liver"].shape == truth.shape
    blind = Predictor([_model("liver", lambda x: x - 9)], [_model("tumor", _tumor)], options).predict(scan)
    assert not blind.labels.any()  # no predicted liver, no tumor
    assert not blind.probabilities["tumor"].any()


def test_components_are_kept_or_dropped_as_asked() -> None:
    scan, truth = _scan()
    stages = [_model("liver", _liver)], [_model("tumor", _tumor)]
    every = Predictor(*stages, PredictOptions(keep_largest=False)).predict(scan)
    assert every.labels[4, 42, 46] == 1
    lesion_ml = np.count_nonzero(truth == 2) * 3.0 / 1000
    assert (Predictor(*stages, PredictOptions(min_lesion_ml=lesion_ml)).predict(scan).labels == 2).any()
    assert not (Predictor(*stages, PredictOptions(min_lesion_ml=lesion_ml + 0.01)).predict(scan).labels == 2).any()


def test_a_multiclass_network_gives_both() -> None:
    scan, truth = _scan()
    prediction = Predictor([_model("multiclass", _multiclass)], options=PredictOptions(probabilities=True)).predict(
        scan
    )
    assert np.array_equal(prediction.labels, truth)
    assert prediction.probabilities.keys() == {"liver", "tumor"}


def test_several_networks_are_averaged() -> None:
    scan, truth = _scan()
    shy = _model("liver", lambda x: _liver(x) * 0 - 0.1)
    sure = _model("liver", _liver)
    assert np.array_equal(Predictor([sure, shy]).predict(scan).labels > 0, truth > 0)
    assert not Predictor([shy]).predict(scan).labels.any()


@pytest.mark.parametrize("turn", ["lps", "ras", "permuted"])
def test_predictions_lie_in_the_sources_own_axis_order(turn: str) -> None:
    hu, truth = _scene()
    if turn == "ras":
        hu, truth = hu[:, ::-1, ::-1].copy(), truth[:, ::-1, ::-1].copy()
        geometry = Geometry(hu.shape, SPACING, (10.0, 20.0, 5.0), RAS)
    elif turn == "permuted":  # array axes x, y, z: z changes fastest
        hu, truth = hu.transpose(2, 1, 0).copy(), truth.transpose(2, 1, 0).copy()
        geometry = Geometry(hu.shape, SPACING[::-1], direction=((0.0, 0.0, 1.0), (0.0, 1.0, 0.0), (1.0, 0.0, 0.0)))
    else:
        geometry = Geometry(hu.shape, SPACING)
    scan = LoadedScan("scan", LabelledVolume(Volume(hu, geometry)), None, geometry, geometry)
    prediction = Predictor([_model("liver", _liver)], [_model("tumor", _tumor)]).predict(scan)
    assert prediction.geometry == geometry
    assert np.array_equal(prediction.labels, truth)


def test_a_resampled_preparation_is_applied_and_undone() -> None:
    scan, truth = _scan(Geometry((14, 48, 56), SPACING, (3.0, 2.0, 1.0), RAS))
    coarse = Preparation(spacing_mm=(None, 2.0, 2.0))
    prediction = Predictor([_model("liver", _liver, coarse)], [_model("tumor", _tumor, coarse)]).predict(scan)
    assert prediction.labels.shape == truth.shape
    for lowest in (1, 2):
        p, r = prediction.labels >= lowest, truth >= lowest
        assert 2 * np.count_nonzero(p & r) / (p.sum() + r.sum()) > 0.85


def test_mirroring_a_network_that_never_saw_flips_is_remarked(caplog: pytest.LogCaptureFixture) -> None:
    Predictor([_model("liver", _liver)], options=PredictOptions(tta=True))
    assert "trained without flips" in caplog.text


def test_stages_that_do_not_fit_are_refused() -> None:
    liver, tumor, both = _model("liver", _liver), _model("tumor", _tumor), _model("multiclass", _multiclass)
    for chosen in (([], [tumor]), ([tumor], []), ([liver, both], []), ([liver], [both])):
        with pytest.raises(UsageError, match="expected at least one for the liver"):
            Predictor(*chosen)


def test_a_store_of_another_preparation_is_refused() -> None:
    scan, _ = _scan()
    stored = replace(scan, prepared=Preparation(spacing_mm=(5.0, 5.0, 5.0)))
    with pytest.raises(StoreError, match="predict from the source files instead") as caught:
        Predictor([_model("liver", _liver)]).predict(stored)
    assert caught.value.code == "STORE_PREPARATION"


# --- files -----------------------------------------------------------------------------------------------------


def _write_scan(path: Path, geometry: Geometry | None = None) -> np.ndarray:
    hu, truth = _scene()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_nifti(path, hu, geometry or Geometry(hu.shape, SPACING))
    return truth


def _write_lits(folder: Path, numbers: tuple[int, ...] = (3, 4)) -> None:
    for number in numbers:
        truth = _write_scan(folder / f"volume-{number}.nii.gz")
        write_nifti(folder / f"segmentation-{number}.nii.gz", truth, Geometry(truth.shape, SPACING))


def _ingest(folder: Path, store: Path) -> None:
    receipts = list(run_ingest(plan_ingest(IngestRequest((folder,), store, workers=1))))
    assert {receipt.status for receipt in receipts} == {"published"}


def _write_run(folder: Path, stage: str) -> Path:
    settings = Settings(stage=stage, width=8, windows=(WINDOW,), patch_zyx=(8, 16, 16), overlap=0.0)
    torch.manual_seed(0)
    network = build_network(settings.network, 1, get_stage(stage).out_channels, settings.width)
    folder.mkdir(parents=True)
    Checkpoint(network.state_dict(), settings, Preparation().as_dict(), step=1).save(folder / "best.pt")
    return folder


def _names(sources: list[str], store: Path, cases: str | None = None) -> list[str]:
    return [scan.name for scan in find_scans(sources, store, CATALOG, cases)[0]]


def test_sources_are_paths_where_they_exist_else_cases_of_the_store(tmp_path: Path) -> None:
    store = tmp_path / "liver.zarr"
    _write_lits(tmp_path / "lits")
    _ingest(tmp_path / "lits", store)
    _write_scan(tmp_path / "other" / "scan one.nii.gz")
    other = str(tmp_path / "other")
    assert _names([], store) == ["lits-003", "lits-004"]
    assert _names(["lits-004"], store) == ["lits-004"]
    assert _names(["lits-*", other], store) == ["lits-003", "lits-004", "scan_one"]
    assert _names(["lits-*"], store, cases="*-003") == ["lits-003"]
    assert _names([other], tmp_path / "none.zarr") == ["scan_one"]  # no store needed
    assert _names([str(store)], tmp_path / "none.zarr") == ["lits-003", "lits-004"]  # a store stands for its cases
    open_store(store).write_split(Split(name="default", seed=0, train=("lits-003",), test=("lits-004",)))
    assert _names([], store, cases="test") == ["lits-004"]


def test_scans_of_known_data_sets_need_no_masks(tmp_path: Path) -> None:
    folder = tmp_path / "lits"
    _write_lits(folder)
    (folder / "segmentation-4.nii.gz").unlink()
    _write_scan(folder / "test-volume-7.nii")
    assert _names([str(folder)], tmp_path) == ["lits-003", "lits-004", "litstest-007"]
    alone = str(folder / "volume-4.nii.gz")
    assert _names([alone], tmp_path) == ["lits-004"]
    scans, _ = find_scans([alone], tmp_path, CATALOG)
    assert np.array_equal(scans[0].load().volume.image.hu, _scene()[0])


def test_scans_that_the_catalogue_does_not_list_are_segmented_all_the_same(tmp_path: Path) -> None:
    _write_scan(tmp_path / "lits" / "volume-200.nii")
    mine = [edited(plain_slice(k), PatientName="Doe^Jane") for k in range(4)]
    write_series(tmp_path / "mine" / "patient A" / "PATIENT_DICOM", mine)
    write_series(tmp_path / "moved" / "PATIENT_DICOM", [plain_slice(k) for k in range(4)])  # its header says 1
    write_series(tmp_path / "mine" / "3Dircadb1.77" / "PATIENT_DICOM", [plain_slice(k) for k in range(4)])
    expected = {"lits": ["lits-200"], "mine": ["PATIENT_DICOM-2", "ircadb-77"], "moved": ["ircadb-01"]}
    for source, names in expected.items():
        scans, rejected = find_scans([str(tmp_path / source)], tmp_path, CATALOG)
        assert ([scan.name for scan in scans], rejected) == (names, [])
        assert all(scan.load().volume.label_map is None for scan in scans)


def test_a_damaged_zip_beside_a_scan_is_reported_and_the_scan_found(tmp_path: Path) -> None:
    _write_scan(tmp_path / "in" / "scan.nii")
    (tmp_path / "in" / "old.zip").write_bytes(b"PK\x03\x04 no zip at all")
    scans, rejected = find_scans([str(tmp_path / "in")], tmp_path, CATALOG)
    assert [scan.name for scan in scans] == ["scan"]
    assert [fault.code for fault in rejected] == ["ARCHIVE_BAD"]


def test_an_identity_header_is_repaired_and_can_be_kept(tmp_path: Path) -> None:
    hu, _ = _scene()
    write_nifti(tmp_path / "volume-30.nii", hu, Geometry(hu.shape, (1.0, 1.0, 1.0), direction=RAS))
    (scan,), _ = find_scans([str(tmp_path / "volume-30.nii")], tmp_path, CATALOG)
    loaded = scan.load()
    assert loaded.source.spacing_mm == (1.25, 0.625, 0.625)
    assert loaded.header.spacing_mm == (1.0, 1.0, 1.0)
    predictor = Predictor([_model("liver", _liver)])
    list(predict_folder([scan], predictor, tmp_path / "a"))
    list(predict_folder([scan], predictor, tmp_path / "b", header="source"))
    (first, repaired, _), (second, kept, _) = (
        read_label_file(tmp_path / name / "lits-030.nii.gz") for name in ("a", "b")
    )
    assert np.array_equal(first, second)
    assert repaired.spacing_mm == (1.25, 0.625, 0.625)
    assert np.allclose(kept.affine_ras, np.eye(4))


@pytest.mark.parametrize(
    ("sources", "cases", "code", "message"),
    [
        (["lits-099"], None, "STORE_CASE_UNKNOWN", "'lits-099' is no path, and .* has no such case"),
        (["{dir}/lits", "lits-003"], None, "USAGE", "lits-003 given twice"),
        (["{dir}/empty"], None, "NOTHING_FOUND", "holds no CT series and no NIfTI"),
        (["lits-*"], "ircadb-*", "USAGE", "no scan fits"),
        (["lits-*"], "test", "SPLIT_INVALID", "has no split 'default'"),
    ],
)
def test_unusable_sources_are_named(
    tmp_path: Path, sources: list[str], cases: str | None, code: str, message: str
) -> None:
    _write_lits(tmp_path / "lits")
    (tmp_path / "empty").mkdir()
    _ingest(tmp_path / "lits", tmp_path / "liver.zarr")
    given_sources = [source.format(dir=tmp_path) for source in sources]
    with pytest.raises(LivError, match=message) as caught:
        find_scans(given_sources, tmp_path / "liver.zarr", CATALOG, cases)
    assert caught.value.code == code


def test_a_scan_that_fails_does_not_stop_the_others(tmp_path: Path) -> None:
    _write_scan(tmp_path / "in" / "good.nii.gz")
    data = (tmp_path / "in" / "good.nii.gz").read_bytes()
    (tmp_path / "in" / "bad.nii.gz").write_bytes(data[: len(data) // 2])
    scans, rejected = find_scans([str(tmp_path / "in")], tmp_path, CATALOG)
    receipts = list(predict_folder(scans, Predictor([_model("liver", _liver)]), tmp_path / "out", rejected=rejected))
    assert [(r.case, r.status, r.code) for r in receipts] == [
        ("bad", "rejected", "GZIP_CORRUPT"),
        ("good", "predicted", ""),
    ]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["good.nii.gz"]


def test_a_scan_that_does_not_fit_into_memory_does_not_stop_the_others(tmp_path: Path) -> None:
    for name in "ab":
        _write_scan(tmp_path / "in" / f"{name}.nii.gz")

    class Full(Predictor):
        def predict(self, scan: LoadedScan) -> Prediction:
            if scan.name == "a":
                raise MemoryError
            return super().predict(scan)

    scans, _ = find_scans([str(tmp_path / "in")], tmp_path, CATALOG)
    receipts = list(predict_folder(scans, Full([_model("liver", _liver)]), tmp_path / "out"))
    assert [(r.case, r.status, r.code) for r in receipts] == [
        ("a", "rejected", "CASE_TOO_LARGE"),
        ("b", "predicted", ""),
    ]
    assert "does not fit into memory, of which" in receipts[0].detail


def test_stored_and_raw_scans_give_the_same_file(tmp_path: Path) -> None:
    hu, truth = _scene()
    geometry = Geometry(hu.shape, SPACING, (7.0, 5.0, 3.0), RAS)
    for name, values in (("volume-3", hu), ("segmentation-3", truth)):
        (tmp_path / "lits").mkdir(exist_ok=True)
        write_nifti(tmp_path / "lits" / f"{name}.nii.gz", values, geometry)
    _ingest(tmp_path / "lits", tmp_path / "liver.zarr")
    predictor = Predictor([_model("liver", _liver)], [_model("tumor", _tumor)], PredictOptions(probabilities=True))
    for out, source in (("raw", str(tmp_path / "lits")), ("stored", "lits-003")):
        scans, _ = find_scans([source], tmp_path / "liver.zarr", CATALOG)
        (receipt,) = predict_folder(scans, predictor, tmp_path / out)
        assert receipt.volume_ml["tumor"] == pytest.approx(np.count_nonzero(truth == 2) * 3 / 1000)
    files = sorted(path.relative_to(tmp_path / "raw") for path in (tmp_path / "raw").rglob("*.nii.gz"))
    assert [str(file) for file in files] == [
        "lits-003.nii.gz", "probabilities/lits-003_liver.nii.gz", "probabilities/lits-003_tumor.nii.gz",
    ]  # fmt: skip
    for file in files:
        assert (tmp_path / "raw" / file).read_bytes() == (tmp_path / "stored" / file).read_bytes()
    labels, written, _ = read_label_file(tmp_path / "raw" / "lits-003.nii.gz")
    assert np.array_equal(labels, truth)
    assert written.same_grid(geometry)


def test_a_submission_holds_test_cases_under_the_challenges_names(tmp_path: Path) -> None:
    truth = _write_scan(tmp_path / "in" / "test-volume-7.nii.gz")
    scans, _ = find_scans([str(tmp_path / "in")], tmp_path, CATALOG)
    predictor = Predictor([_model("liver", _liver)], [_model("tumor", _tumor)])
    said: list[str] = []
    list(predict_folder(scans, predictor, tmp_path / "out", submission=tmp_path / "sub.zip", say=said.append))
    missing = ", ".join(str(number) for number in range(70) if number != 7)
    assert said == [f"{tmp_path / 'sub.zip'}: lacks the test cases {missing}"]
    with zipfile.ZipFile(tmp_path / "sub.zip") as archive:
        assert archive.namelist() == ["test-segmentation-7.nii"]
        archive.extractall(tmp_path)
    assert np.array_equal(read_label_file(tmp_path / "test-segmentation-7.nii")[0], truth)
    _write_scan(tmp_path / "in" / "volume-7.nii.gz")
    scans, _ = find_scans([str(tmp_path / "in" / "volume-7.nii.gz")], tmp_path, CATALOG)
    with pytest.raises(UsageError, match="lits-007 is no LiTS test case"):
        list(predict_folder(scans, predictor, tmp_path / "none", submission=tmp_path / "other.zip"))
    assert not (tmp_path / "none").exists()  # said before any work
    assert not [path for path in tmp_path.iterdir() if "other.zip" in path.name]


def test_a_submission_has_its_inputs_own_affine(tmp_path: Path) -> None:
    hu, _ = _scene()
    geometry = Geometry(hu.shape, (2.5, 0.703125, 0.703125), (180.4, -177.9, -321.7), RAS)
    write_nifti(tmp_path / "test-volume-12.nii", hu, geometry)
    scans, _ = find_scans([str(tmp_path / "test-volume-12.nii")], tmp_path, CATALOG)
    list(predict_folder(scans, Predictor([_model("liver", _liver)]), tmp_path / "out", submission=tmp_path / "s.zip"))
    with zipfile.ZipFile(tmp_path / "s.zip") as archive:
        assert archive.testzip() is None
        archive.extractall(tmp_path)
    written, source = (nib.load(tmp_path / f"test-{name}-12.nii") for name in ("segmentation", "volume"))
    np.testing.assert_allclose(written.affine, source.affine, rtol=0, atol=1e-6)
    assert written.shape == source.shape
    assert written.get_data_dtype() == np.uint8


def test_a_submission_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _write_scan(tmp_path / "in" / "test-volume-7.nii.gz")
    (tmp_path / "s.zip").write_bytes(b"an earlier one")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("livtrain.inference.folder.write_labels", fail)
    scans, _ = find_scans([str(tmp_path / "in")], tmp_path, CATALOG)
    with pytest.raises(OSError, match="No space"):
        list(predict_folder(scans, Predictor([_model("liver", _liver)]), tmp_path / "o", submission=tmp_path / "s.zip"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "o", "s.zip"]
    assert (tmp_path / "s.zip").read_bytes() == b"an earlier one"


def test_writing_goes_on_beside_the_next_scan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first scan's file is finished only once the second scan is in the network."""
    second = threading.Event()

    def logits(x: Tensor) -> Tensor:
        if reads == ["a", "b"]:
            second.set()
        return _liver(x)

    def write(path: Path, *rest: object) -> None:
        assert second.wait(60)
        write_labels(path, *rest)  # type: ignore[arg-type]

    reads: list[str] = []
    load = SourceScan.load
    monkeypatch.setattr(SourceScan, "load", lambda scan: (reads.append(scan.name), load(scan))[1])
    monkeypatch.setattr("livtrain.inference.folder.write_labels", write)
    for name in "ab":
        _write_scan(tmp_path / "in" / f"{name}.nii.gz")
    scans, _ = find_scans([str(tmp_path / "in")], tmp_path, CATALOG)
    receipts = list(predict_folder(scans, Predictor([_model("liver", logits)]), tmp_path / "out"))
    assert [(receipt.case, receipt.status) for receipt in receipts] == [("a", "predicted"), ("b", "predicted")]
    assert all(0 < receipt.network_s < receipt.seconds for receipt in receipts)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.nii.gz", "b.nii.gz"]


def test_empty_predictions_and_tumor_free_references_are_scored_and_other_shapes_refused(tmp_path: Path) -> None:
    from livtrain.evaluate import evaluate_folder

    _write_lits(tmp_path / "lits", (3,))
    healthy = np.minimum(_scene()[1], 1)
    write_nifti(tmp_path / "lits" / "segmentation-3.nii.gz", healthy, Geometry(healthy.shape, SPACING))
    scans, _ = find_scans([str(tmp_path / "lits")], tmp_path, CATALOG)
    for name, logits in (("empty", lambda x: x - 9), ("found", _liver)):
        predictor = Predictor([_model("liver", logits)], [_model("tumor", lambda x: x - 9)])
        (receipt,) = predict_folder(scans, predictor, tmp_path / name)
        assert receipt.status == "predicted"
    nothing = evaluate_folder(tmp_path / "empty", [tmp_path / "lits"])
    assert nothing.lits["liver_dice_per_case"] == 0
    assert nothing.lits["liver_assd"] == 9001
    assert nothing.lits["lesion_dice_per_case"] == 1  # neither side has any
    assert nothing.as_json()["cases"][0]["liver"]["assd"] is None
    assert nothing.nnunet["liver_dice"] == 0
    assert nothing.as_json()["nnunet"]["tumor_dice"] is None
    found = evaluate_folder(tmp_path / "found", [tmp_path / "lits"])
    assert found.lits["liver_dice_per_case"] == 1
    assert found.lits["RMSE_Tumorburden"] == 0
    write_nifti(tmp_path / "found" / "lits-003.nii.gz", healthy[1:], Geometry(healthy[1:].shape, SPACING))
    with pytest.raises(
        GeometryError, match=r"prediction of \(13, 48, 56\) voxels \(zyx\), reference of \(14, 48, 56\)"
    ):
        evaluate_folder(tmp_path / "found", [tmp_path / "lits"])
    write_nifti(tmp_path / "found" / "lits-003.nii.gz", healthy, Geometry(healthy.shape, SPACING))
    _write_lits(tmp_path / "lits", (4,))
    with pytest.raises(UsageError, match="cases without a prediction: lits-004"):
        evaluate_folder(tmp_path / "found", [tmp_path / "lits"])


def test_a_run_is_loaded_with_its_settings(tmp_path: Path) -> None:
    run = _write_run(tmp_path / "runs" / "tumor", "tumor")
    model = load_stage(run, ("tumor",))
    assert (model.stage.name, model.settings.width, model.preparation) == ("tumor", 8, Preparation())
    assert load_stage(run / "best.pt", ("tumor",)).settings == model.settings
    with pytest.raises(UsageError, match="trained for stage tumor, expected liver or multiclass"):
        load_stage(run, ("liver", "multiclass"))
    with pytest.raises(RunError, match="livtrain fit"):
        load_stage(tmp_path, ("liver",))


def test_the_command_segments_a_file_and_prints_a_receipt(tmp_path: Path) -> None:
    from livcli.livtrain_predict import predict

    geometry = Geometry((7, 16, 20), SPACING, (1.0, 2.0, 3.0), RAS)
    write_nifti(tmp_path / "ct.nii.gz", _scene()[0][:7, 6:22, :20], geometry)
    liver, tumor = _write_run(tmp_path / "liver", "liver"), _write_run(tmp_path / "tumor", "tumor")
    arguments = [str(tmp_path / "ct.nii.gz"), "-o", str(tmp_path / "out"), "--liver", str(liver), "--tumor", str(tumor)]
    result = CliRunner().invoke(predict, [*arguments, "--json", "--device", "cpu"], standalone_mode=False)
    assert result.exception is None, result.output
    receipt = json.loads(result.stdout)
    assert (receipt["case"], receipt["status"]) == ("ct", "predicted")
    labels, written, _ = read_label_file(tmp_path / "out" / "ct.nii.gz")
    assert labels.shape == (7, 16, 20)
    assert written.same_grid(geometry)
    (tmp_path / "broken.nii").write_bytes(b"\x5c\x01\x00\x00")
    arguments[0] = str(tmp_path / "broken.nii")
    result = CliRunner().invoke(predict, arguments, standalone_mode=False)
    assert result.return_value == 3
    assert "rejected" in result.stdout


def test_dicom_segmentations_refer_to_their_series_and_other_scans_are_rejected(tmp_path: Path) -> None:
    highdicom = pytest.importorskip("highdicom")
    write_ircadb(tmp_path / "data", (2,), seed=1, size=48)
    _write_scan(tmp_path / "other" / "scan.nii.gz")
    run = _write_run(tmp_path / "run", "liver")
    scans, _ = find_scans([str(tmp_path / "data"), str(tmp_path / "other")], tmp_path / "none", CATALOG)
    predictor = Predictor([load_stage(run, ("liver",))])
    receipts = list(predict_folder(scans, predictor, tmp_path / "out", form="dicom-seg"))
    assert [(receipt.status, receipt.code) for receipt in receipts] == [("predicted", ""), ("rejected", "DICOM_SEG")]
    assert "expected a DICOM series" in receipts[1].detail
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["ircadb-02.dcm"]
    seg = highdicom.seg.segread(tmp_path / "out" / "ircadb-02.dcm")
    predicted = predictor.predict(scans[0].load()).labels
    assert int(seg.pixel_array.sum()) == int((predicted > 0).sum())


@pytest.mark.parametrize("source", ["scan.nii.gz", "scans/series"])
def test_a_path_that_is_not_there_is_not_looked_for_in_a_store(tmp_path: Path, source: str) -> None:
    with pytest.raises(SourceError, match=f"{source}: no such file or folder") as caught:
        find_scans([source], tmp_path / "none.zarr", CATALOG)
    assert caught.value.code == "SOURCE_MISSING"
