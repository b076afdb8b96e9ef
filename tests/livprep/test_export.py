"""Exports: other tools accept them, the voxels are the store's, and nothing half written is ever visible."""

from __future__ import annotations

import csv
import hashlib
import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from building import scan, tree_hash
from click.testing import CliRunner, Result

from livprep.errors import LivError
from livprep.export import FORMATS, export_store
from livprep.geometry import Geometry
from livprep.labels import Label, label_counts
from livprep.prepare import Preparation
from livprep.schema import SCHEMA_VERSION, CaseMeta, SourceMeta
from livprep.splits import Split, make_folds
from livprep.store import CaseContent, create_store, open_store, publish_case
from livprep.volume import LabelledVolume

OBLIQUE = ((0.8, -0.6, 0.0), (0.6, 0.8, 0.0), (0.0, 0.0, 1.0))
GRID = Geometry((5, 8, 7), (2.5, 0.7, 0.8), (10.0, -20.0, 30.5), OBLIQUE)
SPLIT = Split(name="default", seed=0, train=("lits-000", "lits-001"), val=("lits-002",), test=("ircadb-01",))


def _publish(path: Path, name: str, volume: LabelledVolume) -> None:
    counts = None if volume.label_map is None else label_counts(volume.label_map.labels)
    meta = CaseMeta(
        schema_version=SCHEMA_VERSION, case=name, patient=name, dataset="ircadb" if name < "lits" else "lits",
        source=SourceMeta(kind="nifti", files=1, bytes=1, digest="d"), settings_digest="s",
        grid=volume.geometry.as_dict(), affine_lps=volume.geometry.affine_lps.tolist(),
        affine_ras=volume.geometry.affine_ras.tolist(), source_grid=volume.geometry.as_dict(),
        source_affine_ras=volume.geometry.affine_ras.tolist(), source_orientation="LPS",
        source_spacing_mm=list(volume.geometry.spacing_mm), hu_min=-1024, hu_max=1499,
        label_map={label.name.lower(): int(label) for label in Label}, label_voxels=counts, fingerprint=name,
        repairs=[], warnings=[],
    )  # fmt: skip
    publish_case(path, CaseContent(meta, volume), "balanced")


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Five cases: four labelled, on sides of a split, and one without labels that no split names."""
    path = tmp_path / "liver.zarr"
    create_store(path, Preparation(), "balanced", "c")
    for k, name in enumerate(("ircadb-01", "lits-000", "lits-001", "lits-002")):
        _publish(path, name, scan(seed=k, geometry=GRID))
    _publish(path, "litstest-003", LabelledVolume(scan(seed=9, geometry=GRID).image))
    open_store(path).write_split(SPLIT)
    return path


def _export(store: Path, form: Any, dest: Path, **options: Any) -> dict[str, Any]:
    return {entry.case: entry for entry in export_store(store, form, dest, **options)}


@pytest.mark.parametrize("form", list(FORMATS))
def test_voxels_and_geometry_are_the_stores(store: Path, tmp_path: Path, form: str) -> None:
    written = _export(store, form, tmp_path / "out")
    cases = open_store(store)
    assert sorted(written) == sorted(cases)
    for name, entry in written.items():
        image = nib.load(tmp_path / "out" / entry.image)
        assert image.get_data_dtype() == np.int16
        np.testing.assert_array_equal(np.asarray(image.dataobj).T, cases[name].read_hu())
        np.testing.assert_allclose(image.affine, cases[name].geometry.affine_ras, rtol=0, atol=1e-5)
        assert image.header["qform_code"] == image.header["sform_code"] == 1
        assert bytes(image.header["descrip"]).strip(b"\0") == bytes(image.header["db_name"]).strip(b"\0") == b""
        assert len(image.header.extensions) == 0
        if entry.label:
            label = nib.load(tmp_path / "out" / entry.label)
            np.testing.assert_array_equal(np.asarray(label.dataobj).T, cases[name].read_labels())
            np.testing.assert_array_equal(label.affine, image.affine)
            assert label.get_data_dtype() == np.uint8
        assert bool(entry.label) == cases[name].has_labels
        paths = [tmp_path / "out" / path for path in (entry.image, entry.label) if path]
        assert entry.bytes == sum(path.stat().st_size for path in paths)


@pytest.mark.parametrize("form", list(FORMATS))
def test_the_same_store_gives_the_same_bytes(store: Path, tmp_path: Path, form: str) -> None:
    _export(store, form, tmp_path / "a" / "Dataset001_X")
    _export(store, form, tmp_path / "b" / "Dataset001_X")
    one, two = tree_hash(tmp_path / "a"), tree_hash(tmp_path / "b")
    assert one == two
    assert len(one) > 9


def test_nnunet_gets_its_layout_and_the_stores_split(store: Path, tmp_path: Path) -> None:
    _export(store, "nnunet", tmp_path / "Dataset003_Liver")
    root = tmp_path / "Dataset003_Liver"
    names = {
        part: sorted(path.name for path in (root / part).iterdir()) for part in ("imagesTr", "labelsTr", "imagesTs")
    }
    assert names == {
        "imagesTr": [f"lits-00{k}_0000.nii.gz" for k in range(3)],
        "labelsTr": [f"lits-00{k}.nii.gz" for k in range(3)],
        "imagesTs": ["ircadb-01_0000.nii.gz", "litstest-003_0000.nii.gz"],
    }
    described = json.loads((root / "dataset.json").read_text())
    assert described["channel_names"] == {"0": "CT"}
    assert described["labels"] == {"background": 0, "liver": 1, "tumor": 2}
    assert (described["numTraining"], described["file_ending"]) == (3, ".nii.gz")
    assert json.loads((root / "splits_final.json").read_text()) == [
        {"train": ["lits-000", "lits-001"], "val": ["lits-002"]}
    ]


def test_nnunet_gets_every_fold(store: Path, tmp_path: Path) -> None:
    names = {name: name for name in ("ircadb-01", "lits-000", "lits-001", "lits-002")}
    for fold in make_folds(names, 3, name="cv", test=["ircadb-01"]):
        open_store(store).write_split(fold)
    _export(store, "nnunet", tmp_path / "out", split="cv")
    folds = json.loads((tmp_path / "out" / "splits_final.json").read_text())
    assert len(folds) == 3
    assert sorted(name for fold in folds for name in fold["val"]) == ["lits-000", "lits-001", "lits-002"]
    assert all(set(fold["train"]).isdisjoint(fold["val"]) for fold in folds)


def test_without_a_split_all_that_is_labelled_is_for_training(store: Path, tmp_path: Path) -> None:
    written = _export(store, "nnunet", tmp_path / "out", split="unheard")
    assert not (tmp_path / "out" / "splits_final.json").exists()
    assert [entry.split for entry in written.values()].count("train") == 4
    assert written["litstest-003"].image.startswith("imagesTs/")


def test_nnunets_own_check_accepts_it(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("nnunetv2")
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(name, str(tmp_path))
    from nnunetv2.experiment_planning.verify_dataset_integrity import verify_dataset_integrity

    _export(store, "nnunet", tmp_path / "Dataset003_Liver")
    verify_dataset_integrity(str(tmp_path / "Dataset003_Liver"), 1)


def test_monai_loads_the_decathlon_list(store: Path, tmp_path: Path) -> None:
    data = pytest.importorskip("monai.data")
    _export(store, "decathlon", tmp_path / "out")
    lists = {
        key: data.load_decathlon_datalist(str(tmp_path / "out" / "dataset.json"), True, key)
        for key in ("training", "validation", "test")
    }
    assert {key: len(entries) for key, entries in lists.items()} == {"training": 2, "validation": 1, "test": 2}
    for entries in lists.values():
        for entry in entries:
            assert all(Path(path).is_file() for path in entry.values())
    assert json.loads((tmp_path / "out" / "dataset.json").read_text())["numTraining"] == 2


def test_the_table_says_what_the_store_knows(store: Path, tmp_path: Path) -> None:
    _export(store, "nifti", tmp_path / "out")
    with (tmp_path / "out" / "cases.csv").open(encoding="utf-8", newline="") as file:
        rows = {row["case"]: row for row in csv.DictReader(file)}
    counts = open_store(store)["lits-000"].label_counts
    assert counts is not None
    assert rows["lits-000"]["tumor_voxels"] == str(counts["tumor"])
    assert [rows["lits-000"][f"spacing_{axis}_mm"] for axis in "zyx"] == ["2.5", "0.7", "0.8"]
    assert rows["lits-002"]["split"] == "val"
    assert (rows["litstest-003"]["split"], rows["litstest-003"]["label"]) == ("none", "")


def test_croissant_names_every_file_with_its_hash(store: Path, tmp_path: Path) -> None:
    _export(store, "croissant", tmp_path / "out")
    described = json.loads((tmp_path / "out" / "croissant.json").read_text())
    listed = {entry["contentUrl"]: entry["sha256"] for entry in described["distribution"]}
    real = {
        path.relative_to(tmp_path / "out").as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in (tmp_path / "out").rglob("*")
        if path.is_file() and path.name != "croissant.json"
    }
    assert listed == real
    assert described["license"] == "CC BY-NC-ND 4.0"


def test_mlcroissant_validates_and_reads_the_records(store: Path, tmp_path: Path) -> None:
    mlcroissant = pytest.importorskip("mlcroissant")
    _export(store, "croissant", tmp_path / "out")
    records = list(mlcroissant.Dataset(jsonld=tmp_path / "out" / "croissant.json").records("cases"))
    assert len(records) == 5
    assert records[1]["cases/image"] == b"images/lits-000.nii.gz"
    assert records[1]["cases/slices"] == 5


def test_nothing_of_a_failed_or_abandoned_export_is_left(store: Path, tmp_path: Path) -> None:
    records = export_store(store, "nifti", tmp_path / "out")
    next(records)
    assert not (tmp_path / "out").exists()  # not before all is written
    records.close()
    (store / "cases" / "lits-002" / "hu" / "manifest.json").unlink()
    with pytest.raises(LivError, match="lits-002: hu has no usable manifest"):
        _export(store, "nifti", tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["liver.zarr"]


def test_wrong_requests_are_named(store: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    with pytest.raises(LivError, match="exists and is not an empty folder"):
        _export(store, "nifti", tmp_path / "full")
    assert (tmp_path / "full" / "thesis.txt").read_text() == "mine"
    with pytest.raises(LivError, match=r"no case of .* fits own-\*"):
        _export(store, "nifti", tmp_path / "out", cases="own-*")
    with pytest.raises(LivError, match="format 'zip': expected one of nifti, nnunet, decathlon, croissant"):
        _export(store, "zip", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    assert list(_export(store, "nifti", tmp_path / "empty", cases="ircadb-*, lits-000")) == ["ircadb-01", "lits-000"]


def test_the_exported_folder_holds_no_path_of_the_store(store: Path, tmp_path: Path) -> None:
    for form in FORMATS:
        _export(store, form, tmp_path / f"x-{form}")
        for path in (tmp_path / f"x-{form}").rglob("*.[jc]s*"):
            assert str(tmp_path) not in path.read_text(encoding="utf-8")


def _run(*arguments: object) -> Result:
    from livcli.livprep_export import export

    result = CliRunner().invoke(export, [str(argument) for argument in arguments], standalone_mode=False)
    assert result.exception is None, result.exception
    return result


def test_the_command_says_what_it_wrote(store: Path, tmp_path: Path) -> None:
    result = _run("nnunet", tmp_path / "Dataset003_Liver", "--store", store)
    assert "lits-002       val" in result.stdout
    assert "copy splits_final.json to nnUNet_preprocessed/Dataset003_Liver" in result.stderr
    lines = _run("decathlon", tmp_path / "d", "--store", store, "--json", "--cases", "lits-*").stdout.splitlines()
    assert [json.loads(line)["split"] for line in lines] == ["train", "train", "val"]
