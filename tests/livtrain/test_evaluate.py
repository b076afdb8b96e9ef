"""Pairing of files, where references come from, and what `evaluate` prints."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from livprep.catalog import load_catalog
from livprep.cohort import IngestRequest, plan_ingest, run_ingest
from livprep.errors import LivError
from livprep.formats.nifti import write_nifti
from livprep.geometry import Geometry
from livprep.prepare import Preparation
from livtrain.evaluate import case_key, compare, evaluate_folder, score_case
from livtrain.metrics import LITS_NAMES

CATALOG = load_catalog()
SPACING = (2.5, 0.8, 0.7)
RAS = ((-1.0, 0.0, 0.0), (0.0, -1.0, 0.0), (0.0, 0.0, 1.0))
SCORES = {"dice", "jaccard", "voe", "rvd", "assd", "rmsd", "msd", "hd95", "surface_dice"}


def _labels(shift: int = 0, tumor: bool = True) -> np.ndarray:
    labels = np.zeros((8, 16, 24), dtype=np.uint8)
    labels[2:6, 3:12, 4 + shift : 18 + shift] = 1
    if tumor:
        labels[3:5, 5:9, 8 + shift : 13 + shift] = 2
    return labels


def _write(path: Path, labels: np.ndarray, geometry: Geometry | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_nifti(path, labels, geometry or Geometry(labels.shape, SPACING, (5.0, 6.0, 7.0), RAS))
    return path


def _names(folder: Path, names: Sequence[str], shift: int = 0) -> Path:
    for name in names:
        _write(folder / name, _labels(shift))
    folder.mkdir(exist_ok=True)
    return folder


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("ircadb-01.nii.gz", "ircadb-01"),
        ("IRCADB-1.nii", "ircadb-01"),
        ("3Dircadb1.7", "ircadb-07"),
        ("lits-028.nii.gz", "lits-028"),
        ("segmentation-28.nii", "lits-028"),
        ("volume-28.nii.gz", "lits-028"),
        ("litstest-003.nii.gz", "litstest-003"),
        ("test-segmentation-3.nii", "litstest-003"),
        ("test-volume-3.nii", "litstest-003"),
        ("patient.one.nii.gz", "patient.one"),
        ("segmentation-28-old.nii", "segmentation-28-old"),
    ],
)
def test_every_name_of_a_case_gives_one_key(name: str, key: str) -> None:
    assert case_key(name, CATALOG) == key


@given(number=st.integers(0, 130))
def test_keys_of_lits_names_agree_and_are_fixed_points(number: int) -> None:
    keys = {
        case_key(f"{stem}{suffix}", CATALOG)
        for stem in (f"volume-{number}", f"segmentation-{number}", f"lits-{number:03d}", f"lits-{number}")
        for suffix in ("", ".nii", ".nii.gz")
    }
    assert keys == {f"lits-{number:03d}"}


def test_files_are_paired_by_case_and_scored(tmp_path: Path) -> None:
    predictions = _names(tmp_path / "p", ["lits-003.nii.gz", "litstest-007.nii", "other.nii.gz"], shift=1)
    _write(predictions / "probabilities" / "lits-003_liver.nii.gz", _labels())  # below: not taken as a prediction
    references = _names(tmp_path / "r", ["segmentation-3.nii", "test-segmentation-7.nii.gz", "other.nii"])
    found = evaluate_folder(predictions, [references])
    assert [case.case for case in found.cases] == ["lits-003", "litstest-007", "other"]
    case = found.cases[0]
    assert case.liver.dice == pytest.approx(13 / 14)
    assert case.tumor.dice == pytest.approx(4 / 5)
    assert case.liver.msd == pytest.approx(0.7)
    assert case.volume_ml["liver_ref"] == pytest.approx(4 * 9 * 14 * 2.5 * 0.8 * 0.7 / 1000)
    assert found.lits["liver_dice_per_case"] == pytest.approx(13 / 14)
    assert found.nnunet == {"liver_dice": pytest.approx(13 / 14), "tumor_dice": pytest.approx(4 / 5)}


@pytest.mark.parametrize(
    ("predictions", "references", "message"),
    [
        (["lits-001.nii", "a.nii"], ["segmentation-1.nii"], "without a reference: a$"),
        (["a.nii"], ["a.nii", "volume-1.nii", "segmentation-2.nii"], "without a prediction: lits-002"),
        (["a.nii", "b.nii"], ["c.nii"], "without a reference: a, b; without a prediction: c"),
        (["lits-001.nii", "segmentation-1.nii"], ["segmentation-1.nii"], "both are case lits-001"),
    ],
)
def test_what_has_no_partner_is_listed(
    tmp_path: Path, predictions: list[str], references: list[str], message: str
) -> None:
    with pytest.raises(LivError, match=message) as caught:
        evaluate_folder(_names(tmp_path / "p", predictions), [_names(tmp_path / "r", references)])
    assert (caught.value.code, caught.value.exit_code) == ("EVALUATE_UNPAIRED", 2)


def test_a_folder_without_predictions_is_no_matter_of_names(tmp_path: Path) -> None:
    with pytest.raises(LivError, match=r"found no prediction, expected files <case>\.nii\.gz") as caught:
        evaluate_folder(_names(tmp_path / "p", []), [_names(tmp_path / "r", ["a.nii"])])
    assert (caught.value.code, caught.value.exit_code) == ("PREDICTION_MISSING", 2)


def test_unusable_files_are_named(tmp_path: Path) -> None:
    predictions, references = _names(tmp_path / "p", ["a.nii"]), _names(tmp_path / "r", ["a.nii"])
    _write(references / "a.nii", np.full((8, 16, 24), 3, dtype=np.uint8))
    with pytest.raises(LivError, match=r"label values \[3\]") as caught:
        evaluate_folder(predictions, [references])
    assert caught.value.code == "LABEL_UNKNOWN"
    _write(references / "a.nii", np.zeros((8, 16, 25), dtype=np.uint8))
    with pytest.raises(LivError, match=r"a: prediction of \(8, 16, 24\) voxels \(zyx\), reference of \(8, 16, 25\)"):
        evaluate_folder(predictions, [references])
    (tmp_path / "empty").mkdir()
    with pytest.raises(LivError, match="holds no case of a known data set and no label NIfTI"):
        evaluate_folder(predictions, [tmp_path / "empty"])


def test_raw_data_sets_are_references_on_the_source_grid(tmp_path: Path) -> None:
    hu = np.full((8, 16, 24), -1000, dtype=np.int16)
    _write(tmp_path / "lits" / "volumes" / "volume-3.nii.gz", hu)
    _write(tmp_path / "lits" / "labels" / "segmentation-3.nii", _labels())
    predictions = _names(tmp_path / "p", ["lits-003.nii.gz"], shift=1)
    for spacing in ("header", "catalog"):
        found = evaluate_folder(predictions, [tmp_path / "lits"], spacing=spacing)
        assert found.cases[0].liver.dice == pytest.approx(13 / 14)
        assert found.cases[0].liver.msd == pytest.approx(0.7)


@pytest.mark.parametrize("raw", [False, True])
def test_the_spacing_is_the_headers_or_the_repaired_one(tmp_path: Path, raw: bool) -> None:
    """LiTS 30 came with an identity header; its true spacing is 1.25, 0.625, 0.625 mm."""
    identity = Geometry((8, 16, 24), (1.0, 1.0, 1.0), direction=RAS)
    _write(tmp_path / "r" / "segmentation-30.nii", _labels(), identity)
    if raw:
        _write(tmp_path / "r" / "volume-30.nii", np.full((8, 16, 24), -1000, dtype=np.int16), identity)
    _write(tmp_path / "p" / "lits-030.nii.gz", _labels(shift=1), identity)
    for spacing, distance in (("header", 1.0), ("catalog", 0.625)):
        found = evaluate_folder(tmp_path / "p", [tmp_path / "r"], spacing=spacing)
        assert found.cases[0].liver.msd == pytest.approx(distance)


@pytest.mark.parametrize("spacing_mm", [(None, None, None), (2.5, 1.6, 1.4)])
def test_without_references_the_stores_labels_count_on_the_stores_grid(
    tmp_path: Path, spacing_mm: tuple[float | None, float | None, float | None]
) -> None:
    hu = np.random.default_rng(0).integers(-1000, 300, (8, 16, 24)).astype(np.int16)
    for number in (3, 4):
        _write(tmp_path / "lits" / f"volume-{number}.nii", hu)
        _write(tmp_path / "lits" / f"segmentation-{number}.nii", _labels())
    request = IngestRequest(
        (tmp_path / "lits",), tmp_path / "liver.zarr", preparation=Preparation(spacing_mm), workers=1
    )
    assert {receipt.status for receipt in run_ingest(plan_ingest(request))} == {"published"}
    predictions = _names(tmp_path / "p", ["lits-003.nii.gz"])  # case 4 was not predicted, which is no error here
    found = evaluate_folder(predictions, store=tmp_path / "liver.zarr")
    assert found.cases[0].liver.dice == found.cases[0].tumor.dice == 1
    assert "the store" in found.grid
    _write(predictions / "lits-003.nii.gz", np.zeros((8, 16, 25), dtype=np.uint8))
    with pytest.raises(LivError, match=r"lits-003: prediction of \(8, 16, 25\) voxels \(zyx\), the scan has"):
        evaluate_folder(predictions, store=tmp_path / "liver.zarr")
    (predictions / "lits-003.nii.gz").rename(predictions / "lits-009.nii.gz")
    with pytest.raises(LivError, match="without a reference: lits-009"):
        evaluate_folder(predictions, store=tmp_path / "liver.zarr")


def test_conventions_differ_on_scans_without_tumor() -> None:
    clean = score_case("clean", _labels(tumor=False), _labels(tumor=False), SPACING)
    assert math.isnan(clean.tumor.dice)
    entry = clean.as_json()
    assert entry["tumor"] == dict.fromkeys(SCORES, None)
    assert entry["volume_ml"]["tumor"] == 0


def _run(*arguments: object) -> Result:
    from livcli.livtrain_evaluate import evaluate

    result = CliRunner().invoke(evaluate, [str(argument) for argument in arguments], standalone_mode=False)
    assert result.exception is None, result.exception
    return result


def test_the_command_prints_one_object(tmp_path: Path) -> None:
    predictions = _names(tmp_path / "p", ["lits-003.nii.gz"], shift=1)
    references = _names(tmp_path / "r", ["segmentation-3.nii"])
    _write(predictions / "clean.nii", _labels(tumor=False))
    _write(references / "clean.nii", _labels(tumor=False))
    result = _run("-p", predictions, "-r", references, "--json")
    found = json.loads(result.stdout)  # the only thing on stdout, and strict JSON: no NaN
    assert found.keys() == {"cases", "lits", "nnunet"}
    assert tuple(found["lits"]) == LITS_NAMES
    assert found["nnunet"].keys() == {"liver_dice", "tumor_dice"}
    assert [case["case"] for case in found["cases"]] == ["clean", "lits-003"]
    for case in found["cases"]:
        assert case.keys() == {"case", "liver", "tumor", "lesions", "volume_ml"}
        assert case["liver"].keys() == case["tumor"].keys() == SCORES
        assert case["lesions"].keys() == {"tp", "fp", "fn"}
        assert case["volume_ml"].keys() == {"liver", "tumor", "liver_ref", "tumor_ref"}
    assert found["cases"][0]["tumor"]["dice"] is None
    assert "scored on the references' own grid" in result.stderr


def test_the_command_prints_tables_for_people(tmp_path: Path) -> None:
    predictions = _names(tmp_path / "p", ["lits-003.nii.gz"], shift=1)
    result = _run("-p", predictions, "-r", _names(tmp_path / "r", ["segmentation-3.nii"]), "-q")
    assert "lits-003" in result.stdout
    assert "0.9286" in result.stdout
    assert result.stderr == ""


def test_two_folders_are_compared_case_by_case(tmp_path: Path) -> None:
    names = [f"lits-{number:03d}.nii" for number in range(6)]
    references = _names(tmp_path / "r", names)
    good, bad = _names(tmp_path / "good", names), _names(tmp_path / "bad", names, shift=1)
    found = json.loads(_run("-p", good, "-r", references, "--against", bad, "--json", "-q").stdout)
    assert found["against"]["liver_dice"] == {
        "cases": 6, "better": 6, "worse": 0, "mean": pytest.approx(1 / 14), "median": pytest.approx(1 / 14),
        "low": pytest.approx(1 / 14), "high": pytest.approx(1 / 14), "patients": 6, "p_value": pytest.approx(2 / 2**6),
    }  # fmt: skip
    same = json.loads(_run("-p", good, "-r", references, "--against", good, "--json", "-q").stdout)
    assert same["against"]["tumor_dice"]["p_value"] is None
    assert "better in 6 and worse in 0 of 6" in _run("-p", good, "-r", references, "--against", bad, "-q").stdout


def test_compared_folders_must_hold_the_same_cases(tmp_path: Path) -> None:
    first = evaluate_folder(_names(tmp_path / "a", ["a.nii"]), [_names(tmp_path / "ra", ["a.nii"])])
    second = evaluate_folder(_names(tmp_path / "b", ["b.nii"]), [_names(tmp_path / "rb", ["b.nii"])])
    with pytest.raises(LivError, match="cases in one folder only: a, b"):
        compare(first, second)
