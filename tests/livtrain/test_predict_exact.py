"""Prediction sees what training saw, and its results lie where the source's voxels lie."""

from __future__ import annotations

import itertools
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from building import edited, plain_slice, write_series
from torch import Tensor, nn

from livprep.catalog import load_catalog
from livprep.cohort import IngestRequest, plan_ingest, plan_windows, run_ingest, run_windows
from livprep.errors import StoreError
from livprep.formats.nifti import write_nifti
from livprep.geometry import Geometry, canonical_axes
from livprep.prepare import Preparation, prepare_labels, restore
from livprep.store import open_store
from livprep.windows import Window
from livtrain.cleanup import Cleanup
from livtrain.config import Settings, WindowSetting
from livtrain.inference import PredictOptions, Predictor, StageModel, find_scans, predict_folder
from livtrain.inference.inputs import ScanInputs
from livtrain.stages import get_stage

torch.set_num_threads(2)
CATALOG = load_catalog()
WINDOW = WindowSetting(name="wide", wl=0.0, ww=400.0)
AS_IT_IS = Cleanup(keep_largest=False, fill_holes=False, tumor_inside_liver=False)


class Pointwise(nn.Module):
    """Liver above 50 HU."""

    def forward(self, x_BCZYX: Tensor) -> Tensor:
        return 100 * (x_BCZYX[:, :1] - 0.625)


def _model(preparation: Preparation | None = None, windows: tuple[WindowSetting, ...] = (WINDOW,)) -> StageModel:
    settings = Settings(stage="liver", windows=windows, patch_zyx=(8, 16, 16), batch=2, overlap=0.0)
    return StageModel(get_stage("liver"), Pointwise(), settings, preparation or Preparation())


def _above(hu: np.ndarray) -> np.ndarray:
    """What that network marks: 50 HU are 159.4 of 255, and it sees whole numbers."""
    return WINDOW.window().apply(hu) >= 160


def _predictor() -> Predictor:
    return Predictor([_model()], options=PredictOptions(cleanup=AS_IT_IS))


# --- the network's input ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("spacing", [(None, None, None), (3.0, 1.5, 1.5)])
def test_the_networks_input_is_the_stored_channels(
    tmp_path: Path, phantom_ircadb: Path, phantom_lits: Path, spacing: tuple[float | None, float | None, float | None]
) -> None:
    """Zipped and loose DICOM, NIfTI of three orientations and a repaired header, native and resampled."""
    preparation = Preparation(spacing_mm=spacing)
    for folder in (phantom_ircadb, phantom_lits):
        request = IngestRequest((folder,), tmp_path / "liver.zarr", preparation=preparation, workers=1)
        assert {receipt.status for receipt in run_ingest(plan_ingest(request))} == {"published"}
    store = open_store(tmp_path / "liver.zarr")
    list(run_windows(store, plan_windows(store, [Window(40, 220), Window(60, 140)]), workers=1))
    raw = [
        scan
        for folder in (phantom_ircadb, phantom_lits)
        for scan in find_scans([str(folder)], tmp_path / "none", load_catalog(folder / "catalog.yaml"))[0]
    ]
    stored, _ = find_scans([], tmp_path / "liver.zarr", CATALOG)
    assert [scan.name for scan in raw] == [scan.name for scan in stored] == sorted(store)
    for scan, same in zip(raw, stored, strict=True):
        case = store[scan.name]
        model = _model(preparation, tuple(WindowSetting.of(window) for window in case.windows))
        channels = np.stack([case.read_window(window.name) for window in case.windows])
        assert len(channels) == 2
        for loaded in (scan.load(), same.load()):
            inputs = ScanInputs(loaded)
            np.testing.assert_array_equal(inputs.channels(model), channels)
            assert inputs.grid(model) == case.geometry


# --- and back --------------------------------------------------------------------------------------------------

PERMUTATIONS = [np.array(order)[:, None] == np.arange(3)[None] for order in itertools.permutations(range(3))]
SIGNS = list(itertools.product((1.0, -1.0), repeat=3))


@pytest.mark.parametrize("permutation", range(6))
def test_labels_come_back_exactly_at_native_spacing(permutation: int) -> None:
    """Labels to the stored grid and their indicators back, for all 48 orders and directions of axes."""
    rng = np.random.default_rng(permutation)
    for signs in SIGNS:
        direction = PERMUTATIONS[permutation] * np.array(signs)
        rows = tuple(tuple(float(v) for v in row) for row in direction)
        source = Geometry((5, 7, 4), (2.0, 0.7, 0.8), (3.0, -20.0, 11.5), rows)
        labels = rng.integers(0, 3, source.shape_zyx).astype(np.uint8)
        stored = prepare_labels(labels, source, Preparation())
        assert stored.geometry == canonical_axes(source)[1]
        indicators = np.stack([stored.labels == label for label in range(3)]).astype(np.float32)
        np.testing.assert_array_equal(restore(indicators, stored.geometry, source).argmax(axis=0), labels)


def _affine(signs: tuple[float, float, float], origin: tuple[float, float, float]) -> np.ndarray:
    affine = np.diag([0.703125 * signs[0], 0.703125 * signs[1], 2.5 * signs[2], 1.0])
    affine[:3, 3] = origin
    return affine


def _tilted() -> np.ndarray:
    """20 degrees about x, then 10 about z."""
    a, b = np.radians((20.0, 10.0))
    about_x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    about_z = np.array([[np.cos(b), -np.sin(b), 0], [np.sin(b), np.cos(b), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = about_z @ about_x @ np.diag([-0.8, -0.8, 3.0])
    affine[:3, 3] = (120.5, 98.25, -400.0)
    return affine


AFFINES = {
    "LAS": _affine((-1, 1, 1), (180.4, -177.9, -321.7)),
    "LPS": _affine((-1, -1, 1), (180.4, 177.9, -321.7)),
    "RAS": _affine((1, 1, 1), (-180.4, -177.9, 55.0)),
    "RPI": _affine((1, -1, -1), (-180.4, 177.9, 55.0)),
    "oblique": _tilted(),
    "sagittal": np.array([[0, 0, 2.5, -90.0], [0.7, 0, 0, -120.0], [0, -0.7, 0, 60.0], [0, 0, 0, 1]]),
}


@pytest.mark.parametrize("name", list(AFFINES))
def test_results_lie_on_the_niftis_own_affine(tmp_path: Path, name: str) -> None:
    hu = np.random.default_rng(0).integers(-150, 200, (9, 18, 20), dtype=np.int16)
    image = nib.Nifti1Image(hu.transpose(2, 1, 0), AFFINES[name])
    nib.save(image, tmp_path / "scan.nii")
    scans, rejected = find_scans([str(tmp_path / "scan.nii")], tmp_path, CATALOG)
    assert not rejected
    (receipt,) = predict_folder(scans, _predictor(), tmp_path / "out")
    assert receipt.status == "predicted"
    written, source = nib.load(tmp_path / "out" / "scan.nii.gz"), nib.load(tmp_path / "scan.nii")
    np.testing.assert_allclose(written.affine, source.affine, rtol=0, atol=1e-6)
    np.testing.assert_allclose(written.get_qform(), source.affine, rtol=0, atol=1e-4)  # a quaternion of float32
    np.testing.assert_array_equal(np.asarray(written.dataobj).transpose(2, 1, 0) > 0, _above(hu))


def _sliced(folder: Path, axes: tuple[float, ...], step: tuple[float, float, float]) -> np.ndarray:
    """A series whose slices have those row and column directions and follow one another by `step` mm."""
    hu = np.random.default_rng(1).integers(-150, 200, (6, 6, 5)).astype(np.int16)
    text = [f"{value:g}" for value in axes]
    slices = [
        edited(
            plain_slice(k, hu[k]), ImageOrientationPatient=text, ImagePositionPatient=[f"{k * s + 7:g}" for s in step]
        )
        for k in range(6)
    ]
    write_series(folder, slices)
    return hu


@pytest.mark.parametrize(
    ("axes", "step"),
    [
        ((1, 0, 0, 0, 1, 0), (0, 0, 2)),
        ((1, 0, 0, 0, 1, 0), (0, 0, -2)),
        ((-1, 0, 0, 0, 1, 0), (0, 0, 2)),  # feet first, supine
        ((-1, 0, 0, 0, -1, 0), (0, 0, 2)),  # head first, prone
        ((0, 1, 0, 0, 0, -1), (2, 0, 0)),  # sagittal
        ((1, 0, 0, 0, 0, -1), (0, 2, 0)),  # coronal
        ((0.6, 0.8, 0, -0.8, 0.6, 0), (0, 0, 2)),  # turned in the plane
    ],
)
def test_series_of_any_orientation_get_results_on_their_own_voxels(
    tmp_path: Path, axes: tuple[float, ...], step: tuple[float, float, float]
) -> None:
    hu = _sliced(tmp_path / "series", axes, step)
    scans, _ = find_scans([str(tmp_path / "series")], tmp_path, CATALOG)
    (receipt,) = predict_folder(scans, _predictor(), tmp_path / "out")
    assert receipt.status == "predicted", receipt
    written = nib.load(receipt.path)
    found = np.asarray(written.dataobj).transpose(2, 1, 0) > 0
    normal = np.cross(axes[:3], axes[3:])
    backward = float(np.dot(normal, step)) < 0  # slices are read along the normal
    np.testing.assert_array_equal(found[::-1] if backward else found, _above(hu))
    columns = np.array([np.array(axes[:3]) * 0.7, np.array(axes[3:]) * 0.8, normal * 2]).T
    np.testing.assert_allclose(written.affine[:3, :3], np.diag([-1, -1, 1]) @ columns, rtol=0, atol=1e-6)
    first = np.array([5 * s + 7 if backward else 7 for s in step], dtype=float)
    np.testing.assert_allclose(written.affine[:3, 3], np.diag([-1, -1, 1]) @ first, rtol=0, atol=1e-6)


@pytest.mark.parametrize("number", range(28, 48))
def test_repaired_cases_are_written_repaired_or_as_they_came(tmp_path: Path, number: int) -> None:
    hu = np.random.default_rng(number).integers(-150, 200, (8, 16, 16), dtype=np.int16)
    path = tmp_path / f"volume-{number}.nii"
    nib.save(nib.Nifti1Image(hu.transpose(2, 1, 0), np.eye(4)), path)
    scans, _ = find_scans([str(path)], tmp_path, CATALOG)
    written: dict[str, nib.Nifti1Image] = {}
    for header in ("repaired", "source"):
        (receipt,) = predict_folder(scans, _predictor(), tmp_path / header, header=header)
        assert receipt.status == "predicted", receipt
        written[header] = nib.load(receipt.path)
    np.testing.assert_array_equal(*(np.asarray(each.dataobj) for each in written.values()))
    np.testing.assert_array_equal(written["source"].affine, np.eye(4))
    patient = CATALOG.ircadb.case(number - 27)
    assert patient is not None
    z_mm, xy_mm = scans[0].load().source.spacing_mm[:2]
    np.testing.assert_allclose(
        np.diag(written["repaired"].affine), [-xy_mm, xy_mm, z_mm, 1], rtol=0, atol=1e-6
    )  # L A S
    assert xy_mm != 1


# --- what cannot be done is said -------------------------------------------------------------------------------


def test_a_crf_needs_the_scans_own_voxels(tmp_path: Path, phantom_lits: Path) -> None:
    preparation = Preparation(spacing_mm=(3.0, 1.5, 1.5))
    request = IngestRequest((phantom_lits,), tmp_path / "liver.zarr", preparation=preparation, workers=1)
    list(run_ingest(plan_ingest(request)))
    scans, _ = find_scans(["lits-068"], tmp_path / "liver.zarr", CATALOG)
    predictor = Predictor([_model(preparation)], options=PredictOptions(crf="3d"))
    with pytest.raises(StoreError, match="--crf needs the scan's own voxels, and the store has them at"):
        list(predict_folder(scans, predictor, tmp_path / "out"))


@pytest.mark.parametrize("kind", ["3d", "2d"])
def test_a_crf_joins_what_noise_divides(tmp_path: Path, kind: str) -> None:
    rng = np.random.default_rng(0)
    truth = np.zeros((12, 32, 32), dtype=bool)
    truth[3:9, 8:24, 8:24] = True
    hu = np.where(truth, 60, 20) + rng.normal(0, 12, truth.shape)
    write_nifti(tmp_path / "scan.nii", np.rint(hu).astype(np.int16), Geometry(truth.shape, (2.0, 1.0, 1.0)))
    found: dict[str | None, np.ndarray] = {}
    model = _model()
    model.network.forward = lambda x: 8 * (x - 0.6)  # type: ignore[method-assign]
    for crf in (None, kind):
        options = PredictOptions(cleanup=AS_IT_IS, crf=crf, probabilities=True)
        scans, _ = find_scans([str(tmp_path / "scan.nii")], tmp_path, CATALOG)
        prediction = Predictor([model], options=options).predict(scans[0].load())
        p = prediction.probabilities["liver"]
        clear = np.abs(p - 0.5) > 1e-3  # float16
        assert np.array_equal(prediction.labels[clear] > 0, p[clear] >= 0.5)
        found[crf] = prediction.labels > 0
    assert (found[kind] == truth).mean() > 0.97 > (found[None] == truth).mean()
