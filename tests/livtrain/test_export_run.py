"""Exports of a network: each computes what the run computes, and carries what its user must know."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

from livprep.errors import LivError
from livprep.formats.nifti import write_nifti
from livprep.geometry import Geometry
from livprep.prepare import Preparation
from livprep.windows import Window, WindowBank
from livtrain.checkpoint import Checkpoint
from livtrain.config import Settings, WindowSetting
from livtrain.export import TOLERANCE, export_run, load_model
from livtrain.export.model import largest_difference
from livtrain.networks import build_network
from livtrain.stages import get_stage

WINDOWS = (Window(40, 220), Window(60, 140))
SETTINGS = [WindowSetting(name=w.name, wl=w.center_hu, ww=w.width_hu) for w in WINDOWS]
NATIVE = Preparation()


def _run(folder: Path, stage: str = "liver", *, count: int = 1, preparation: Preparation = NATIVE) -> Path:
    settings = Settings(
        stage=stage, width=4, windows=tuple(SETTINGS[:count]), patch_zyx=(8, 16, 16), batch=1, overlap=0.5
    )
    torch.manual_seed(3)
    network = build_network(settings.network, count, get_stage(stage).out_channels, settings.width)
    folder.mkdir(parents=True)
    Checkpoint(network.state_dict(), settings, preparation.as_dict(), step=7).save(folder / "best.pt")
    return folder


def _input(channels: int, shape: tuple[int, int, int] = (16, 8, 40), batch: int = 3) -> torch.Tensor:
    return torch.rand((batch, channels, *shape), generator=torch.Generator().manual_seed(5))


def _expected(run: Path, x: torch.Tensor) -> np.ndarray:
    with torch.no_grad():
        return load_model(run).network(x).numpy()


def test_safetensors_hold_the_weights_and_say_what_they_are(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors")
    run = _run(tmp_path / "run", "multiclass", count=2)
    receipt = export_run(run, "safetensors")
    assert receipt.path == str(run / "export" / "multiclass.safetensors")
    assert receipt.largest_difference == 0
    with safetensors.safe_open(receipt.path, "pt") as file:
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = json.loads(file.metadata()["livtrain"])
    own = load_model(run).network.state_dict()
    assert state.keys() == own.keys()
    assert all(torch.equal(state[name], own[name]) for name in own)
    assert metadata["stage"] == "multiclass"
    assert json.loads(metadata["windows"])[1] == {"name": "wl60_ww140", "wl": 60.0, "ww": 140.0}
    assert json.loads(metadata["settings"])["width"] == 4
    assert Preparation.from_dict(json.loads(metadata["preparation"])) == NATIVE
    assert json.loads(metadata["output_channels"]) == ["background", "liver", "tumor"]
    again = export_run(run, "safetensors", tmp_path / "again.safetensors")
    assert Path(again.path).read_bytes() == Path(receipt.path).read_bytes()


@pytest.mark.parametrize(("stage", "count"), [("liver", 1), ("multiclass", 2)])
def test_onnxruntime_equals_torch_at_other_sizes_too(tmp_path: Path, stage: str, count: int) -> None:
    onnxruntime, onnx = pytest.importorskip("onnxruntime"), pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    run = _run(tmp_path / "run", stage, count=count)
    receipt = export_run(run, "onnx")
    assert receipt.largest_difference <= TOLERANCE
    session = onnxruntime.InferenceSession(receipt.path, providers=["CPUExecutionProvider"])
    for shape, batch in (((16, 8, 40), 3), ((8, 8, 8), 1)):
        x = _input(count, shape, batch)
        found = session.run(["logits"], {"windows": x.numpy()})[0]
        np.testing.assert_allclose(found, _expected(run, x), rtol=0, atol=1e-4)
    proto = onnx.load(receipt.path)
    props = {entry.key: entry.value for entry in proto.metadata_props}
    assert props["stage"] == stage
    assert "site-packages" not in str(proto)  # no path of the machine that exported it
    assert str(Path(torch.__file__).parent) not in Path(receipt.path).read_bytes().decode("latin-1")


def test_torchscript_equals_torch_exactly(tmp_path: Path) -> None:
    run = _run(tmp_path / "run", "tumor", count=2)
    receipt = export_run(run, "torchscript", tmp_path / "net.ts")
    assert receipt.largest_difference == 0
    extra = {"livtrain.json": ""}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network = torch.jit.load(tmp_path / "net.ts", _extra_files=extra)
    x = _input(2)
    with torch.no_grad():
        np.testing.assert_array_equal(network(x).numpy(), _expected(run, x))
    assert json.loads(extra["livtrain.json"])["activation"] == "sigmoid"


@pytest.mark.parametrize("turn", ["LPS", "RAS"])
def test_the_bundle_runs_in_monai_alone(tmp_path: Path, turn: str) -> None:
    """Its own configuration, on a NIfTI, against the network on the same scan's channels in LPS order."""
    bundle = pytest.importorskip("monai.bundle")
    run = _run(tmp_path / "run", count=2)
    export_run(run, "monai", tmp_path / "bundle")
    rng = np.random.default_rng(0)
    hu = rng.integers(-200, 300, (8, 16, 24)).astype(np.int16)
    direction = ((-1.0, 0.0, 0.0), (0.0, -1.0, 0.0), (0.0, 0.0, 1.0))
    lps = Geometry(hu.shape, (2.0, 0.8, 0.7), (5.0, 6.0, 7.0))
    if turn == "LPS":
        write_nifti(tmp_path / "scan.nii.gz", hu, lps)
    else:
        origin = (lps.origin_mm[0] + 23 * 0.7, lps.origin_mm[1] + 15 * 0.8, 7.0)
        write_nifti(tmp_path / "scan.nii.gz", hu[:, ::-1, ::-1], Geometry(hu.shape, (2.0, 0.8, 0.7), origin, direction))
    parser = bundle.ConfigParser(bundle.load_bundle_config(str(tmp_path / "bundle"), "inference.json").config)
    parser["bundle_root"], parser["image"] = str(tmp_path / "bundle"), str(tmp_path / "scan.nii.gz")
    parser["device"] = torch.device("cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = parser.get_parsed_content("preprocessing")({"image": str(tmp_path / "scan.nii.gz")})
        network = parser.get_parsed_content("network_def")
        inferer = parser.get_parsed_content("inferer")
        channels = WindowBank(WINDOWS).apply(hu) / np.float32(255)
        np.testing.assert_allclose(np.asarray(data["image"]), channels, rtol=0, atol=1 / 510 + 1e-6)
        with torch.no_grad():
            found = inferer(torch.as_tensor(np.asarray(data["image"]))[None], network).numpy()
            expected = inferer(torch.from_numpy(channels)[None], load_model(run).network).numpy()
    assert np.abs(found - expected).max() < 0.05 * max(1.0, np.abs(expected).max())
    metadata = json.loads((tmp_path / "bundle" / "configs" / "metadata.json").read_text())
    for key in ("version", "changelog", "monai_version", "pytorch_version", "task", "network_data_format"):
        assert key in metadata
    assert metadata["network_data_format"]["inputs"]["image"]["num_channels"] == 2


def test_the_bundles_command_writes_probabilities(tmp_path: Path) -> None:
    bundle = pytest.importorskip("monai.bundle")
    export_run(_run(tmp_path / "run", "multiclass"), "monai", tmp_path / "bundle")
    hu = np.random.default_rng(0).integers(-200, 300, (8, 16, 16)).astype(np.int16)
    write_nifti(tmp_path / "scan.nii.gz", hu, Geometry(hu.shape, (2.0, 0.8, 0.7)))
    parser = bundle.ConfigParser(bundle.load_bundle_config(str(tmp_path / "bundle"), "inference.json").config)
    parser["bundle_root"], parser["image"] = str(tmp_path / "bundle"), str(tmp_path / "scan.nii.gz")
    parser["device"] = torch.device("cpu")
    try:
        import ignite  # noqa: F401
    except ModuleNotFoundError:
        pytest.skip("MONAI's evaluator needs pytorch-ignite")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        parser.get_parsed_content("run")
    assert list((tmp_path / "bundle" / "eval").rglob("*prob*"))


def test_a_resampled_preparation_is_in_the_bundle(tmp_path: Path) -> None:
    run = _run(tmp_path / "run", preparation=Preparation((2.5, None, 1.0)))
    export_run(run, "monai", tmp_path / "bundle")
    steps = json.loads((tmp_path / "bundle" / "configs" / "inference.json").read_text())["preprocessing"]["transforms"]
    spacing = next(step for step in steps if step["_target_"] == "Spacingd")
    assert spacing["pixdim"] == [1.0, -1.0, 2.5]  # MONAI's order is x, y, z; -1 keeps an axis


def test_a_wrong_export_is_refused_and_nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from livtrain.export import exporting

    run = _run(tmp_path / "run")

    def wrong(model: Any, path: Path) -> Any:
        path.write_bytes(b"half")
        return lambda x: np.full((len(x), 1, *x.shape[2:]), np.nan, dtype=np.float32)

    monkeypatch.setitem(exporting._WRITERS, "torchscript", wrong)
    with pytest.raises(LivError, match=r"logits differ by nan, expected at most 0\.0001") as caught:
        export_run(run, "torchscript", tmp_path / "out" / "net.ts")
    assert (caught.value.code, caught.value.exit_code) == ("EXPORT_DIFFERS", 4)
    assert list((tmp_path / "out").iterdir()) == []
    with pytest.raises(LivError, match="logits of"):
        largest_difference(load_model(run), lambda x: x[:, :, :1])


def test_wrong_requests_are_named(tmp_path: Path) -> None:
    run = _run(tmp_path / "run")
    with pytest.raises(LivError, match="format 'zip': expected one of safetensors, onnx, torchscript, monai"):
        export_run(run, "zip")  # type: ignore[arg-type]
    with pytest.raises(LivError, match="found neither"):
        export_run(tmp_path, "torchscript")
    with pytest.raises(LivError, match="is a folder; choose another"):
        export_run(run, "torchscript", tmp_path)
    with pytest.raises(LivError, match="is a folder that is not empty"):
        export_run(run, "monai", tmp_path)


def _command(*arguments: object) -> Result:
    from livcli.livtrain_export import export

    result = CliRunner().invoke(export, [str(argument) for argument in arguments], standalone_mode=False)
    assert result.exception is None, result.exception
    return result


def test_the_command_says_what_it_wrote(tmp_path: Path) -> None:
    run = _run(tmp_path / "run")
    assert "stage liver, largest difference of a logit 0.0e+00" in _command(run, "--format", "torchscript").stdout
    found = json.loads(_command(run, "--format", "torchscript", "-o", tmp_path / "x.ts", "--json").stdout)
    assert found["path"] == str(tmp_path / "x.ts")
    assert found["bytes"] == (tmp_path / "x.ts").stat().st_size
