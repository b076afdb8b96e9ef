"""A case opens in other software, without our code and without a warning."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import xarray
import zarr

from livprep.store import CaseStore, open_store

CASES = ["ircadb-01", "ircadb-07", "lits-028"]


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest, small_store: Path) -> CaseStore:
    return open_store(small_store)[request.param]


def arrays(case: CaseStore) -> list[Path]:
    nodes = (path.parent for path in case.path.rglob("zarr.json"))
    return [path for path in nodes if json.loads((path / "zarr.json").read_text())["node_type"] == "array"]


def test_xarray_opens_the_tree(case: CaseStore) -> None:
    with xarray.open_datatree(case.path, engine="zarr") as tree:  # warnings are errors in these tests
        image = tree["hu/scale0"].to_dataset()
        np.testing.assert_array_equal(image["image"], case.read_hu())
        np.testing.assert_allclose(np.diff(image["z"]), case.geometry.spacing_mm[0])
        np.testing.assert_allclose(image["x"][0], case.geometry.origin_mm[0])
        assert image["image"].dims == ("z", "y", "x")
        assert image["z"].attrs["units"] == "mm"
        label = tree["hu/labels/liver_tumor"].to_dataset()["image"]
        np.testing.assert_array_equal(label, case.read_labels())
        assert label.attrs["flag_meanings"] == "background liver tumor"
        for name in case.window_names:
            np.testing.assert_array_equal(tree[f"windows/{name}/scale0"]["image"], case.read_window(name))
        np.testing.assert_array_equal(tree["train"]["packed"], case.read_packed())


@pytest.mark.parametrize("group", ["hu/scale0", "hu/labels/liver_tumor", "windows/wl40_ww220/scale0", "train"])
def test_xarray_opens_each_group(case: CaseStore, group: str) -> None:
    with xarray.open_zarr(case.path / group) as dataset:
        assert all(set(variable.dims) == {"z", "y", "x"} for variable in dataset.data_vars.values())


def test_xarray_opens_the_case_by_its_consolidated_metadata(case: CaseStore) -> None:
    with xarray.open_zarr(case.path, group="hu/scale0", consolidated=False) as dataset:
        assert "image" in dataset
    group = zarr.open_group(case.path, mode="r", use_consolidated=True)
    names = {name for name, _ in group.members(max_depth=None)}
    assert names == {
        path.relative_to(case.path).as_posix() for path in case.path.rglob("*") if (path / "zarr.json").is_file()
    }


def test_no_warning_in_a_fresh_interpreter(case: CaseStore) -> None:
    script = (
        "import sys, xarray\n"
        "tree = xarray.open_datatree(sys.argv[1], engine='zarr')\n"
        "tree.load()\n"
        "xarray.open_zarr(sys.argv[1] + '/hu/scale0').load()"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script, str(case.path)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_ome_zarr_models_accept_images_and_labels(case: CaseStore) -> None:
    from ome_zarr_models.v05 import Image, ImageLabel
    from ome_zarr_models.v05.labels import Labels

    for name in ["hu", *(f"windows/{window}" for window in case.window_names)]:
        image = Image.from_zarr(zarr.open_group(case.path / name, mode="r"))
        (multiscale,) = image.ome_attributes.multiscales
        assert [axis.name for axis in multiscale.axes] == ["z", "y", "x"]
        assert {axis.unit for axis in multiscale.axes} == {"millimeter"}
        (level,) = multiscale.datasets
        scale, translation = level.coordinateTransformations
        assert tuple(scale.scale) == case.geometry.spacing_mm
        assert tuple(translation.translation) == case.geometry.origin_mm[::-1]
    label = ImageLabel.from_zarr(zarr.open_group(case.path / "hu/labels/liver_tumor", mode="r"))
    assert label.ome_attributes.image_label is not None
    assert {color.label_value for color in label.ome_attributes.image_label.colors} == {0, 1, 2}
    labels = Labels.from_zarr(zarr.open_group(case.path / "hu/labels", mode="r"))
    assert labels.ome_attributes.labels == ["liver_tumor"]


def test_anatomical_orientation_is_stated_for_each_axis(case: CaseStore) -> None:
    ome = json.loads((case.path / "hu" / "zarr.json").read_text())["attributes"]["ome"]
    assert {axis["name"]: axis["orientation"]["value"] for axis in ome["multiscales"][0]["axes"]} == {
        "z": "inferior-to-superior", "y": "anterior-to-posterior", "x": "right-to-left",
    }  # fmt: skip
    (channel,) = ome["omero"]["channels"]
    assert (channel["window"]["min"], channel["window"]["max"]) == (case.hu_min, case.hu_max)


def test_zarr_python_opens_every_array_with_named_dimensions(case: CaseStore) -> None:
    found = arrays(case)
    assert len(found) > 15
    for path in found:
        array = zarr.open_array(path, mode="r")
        assert array.metadata.zarr_format == 3
        assert array.metadata.dimension_names is not None
        assert all(array.metadata.dimension_names)
        array[...]


def test_crc32c_is_the_last_codec_in_shards_and_elsewhere(case: CaseStore) -> None:
    sharded = 0
    for path in arrays(case):
        (*_, last) = codecs = json.loads((path / "zarr.json").read_text())["codecs"]
        if last["name"] == "sharding_indexed":
            sharded += 1
            assert len(codecs) == 1
            assert last["configuration"]["codecs"][-1]["name"] == "crc32c"
            assert last["configuration"]["index_codecs"][-1]["name"] == "crc32c"
        else:
            assert last["name"] == "crc32c"
    assert sharded == 3 + len(case.window_names)  # hu, labels, packed


def test_each_volume_is_one_shard_of_64_cubed_chunks(case: CaseStore) -> None:
    for name in ("hu/scale0/image", "hu/labels/liver_tumor/image", "train/packed", "windows/wl40_ww220/scale0/image"):
        array = zarr.open_array(case.path / name, mode="r")
        assert array.chunks == (64, 64, 64)
        assert array.shards is not None
        assert all(shard >= size for shard, size in zip(array.shards, array.shape, strict=True))
        assert len([path for path in (case.path / name / "c").rglob("*") if path.is_file()]) == 1


def test_simpleitk_sees_the_same_patient_through_the_stored_affine(case: CaseStore) -> None:
    """affine_lps of the attributes maps the stored index to the millimeters that other readers give."""
    import SimpleITK as sitk

    attributes = json.loads((case.path / "zarr.json").read_text())["attributes"]["livprep"]
    geometry = case.geometry
    np.testing.assert_allclose(attributes["affine_lps"], geometry.affine_lps)
    np.testing.assert_allclose(attributes["affine_ras"], np.diag([-1, -1, 1, 1]) @ geometry.affine_lps)
    image = sitk.GetImageFromArray(case.read_hu())
    image.SetSpacing(geometry.spacing_mm[::-1])
    image.SetOrigin(geometry.origin_mm)
    image.SetDirection([float(v) for v in np.ravel(geometry.direction)])
    index = (3, 5, 7)
    expected = (np.array(attributes["affine_lps"]) @ [*index, 1])[:3]
    np.testing.assert_allclose(image.TransformIndexToPhysicalPoint(index), expected)


def test_a_foreign_tree_can_copy_a_case(case: CaseStore, tmp_path: Path) -> None:
    """Nothing in a case points outside it: a copy alone opens as before."""
    import shutil

    shutil.copytree(case.path, tmp_path / "copy")
    with xarray.open_datatree(tmp_path / "copy", engine="zarr") as tree:
        np.testing.assert_array_equal(tree["hu/scale0/image"], case.read_hu())


def test_tensorstore_reads_every_volume(case: CaseStore) -> None:
    import tensorstore

    read = {
        "hu/scale0/image": case.read_hu(),
        "hu/labels/liver_tumor/image": case.read_labels(),
        "windows/wl40_ww220/scale0/image": case.read_window("wl40_ww220"),
        "train/packed": case.read_packed(),
    }
    for name, expected in read.items():
        where = {"driver": "file", "path": f"{case.path / name}/"}
        opened = tensorstore.open({"driver": "zarr3", "kvstore": where}, read=True).result()
        assert list(opened.domain.labels) == ["z", "y", "x"]
        np.testing.assert_array_equal(opened.read().result(), expected)
        np.testing.assert_array_equal(opened[3:9, 5:20, 7].read().result(), expected[3:9, 5:20, 7])


def test_windows_are_ome_images_with_their_own_channel(case: CaseStore) -> None:
    """uint8 channels are shown from 0 to 255, under their own names, in the stored order."""
    for order, name in enumerate(case.window_names):
        attributes = json.loads((case.path / "windows" / name / "zarr.json").read_text())["attributes"]
        (channel,) = attributes["ome"]["omero"]["channels"]
        assert channel["label"] == name
        assert channel["window"] == {"min": 0, "max": 255, "start": 0, "end": 255}
        assert attributes["livprep"]["order"] == order
        (multiscale,) = attributes["ome"]["multiscales"]
        assert [axis["orientation"]["type"] for axis in multiscale["axes"]] == ["anatomical"] * 3


def test_the_pages_blocks_open_a_case(case: CaseStore) -> None:
    """The blocks of docs/opening-the-store.md, run on this case."""
    import re

    page = (Path(__file__).parents[2] / "docs/opening-the-store.md").read_text(encoding="utf-8")
    blocks = dict(
        re.findall(r"^## (xarray|zarr-python|tensorstore|ITK)[^\n]*\n+```python\n(.*?)^```", page, re.M | re.S)
    )
    assert set(blocks) == {"xarray", "zarr-python", "tensorstore", "ITK"}
    for name, block in blocks.items():
        script = block.replace("liver.zarr/cases/ircadb-01", str(case.path))
        if name == "ITK":
            script += "print(image.GetSize(), image.GetSpacing())\n"
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, timeout=120, check=False
        )
        assert (done.returncode, done.stderr) == (0, ""), name
    assert str(case.shape_zyx[::-1]) in done.stdout
