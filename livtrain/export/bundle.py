"""A MONAI bundle: weights, metadata and an inference configuration that MONAI alone can run.

Its network is the TorchScript graph, so that MONAI needs no livtrain. Its windows are computed in float, ours are
stored in 256 steps: an input differs by up to 1/510.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from livprep.errors import UsageError
from livprep.provenance import package_version
from livprep.windows import Window
from livtrain.export.forms import write_torchscript
from livtrain.export.model import Compute, TrainedModel

_README = """# Liver and liver-tumor segmentation on CT, stage {stage}

Exported by livtrain {version}. Not a medical device.

    python -m monai.bundle run --config_file configs/inference.json --bundle_root . --image scan.nii.gz

Output: probabilities on the prepared grid, in `output_dir`. See `configs/metadata.json` for windows and preparation.
"""


def write_bundle(model: TrainedModel, folder: Path) -> Compute:
    """Write `models/model.ts`, `configs/metadata.json`, `configs/inference.json` and `docs/README.md`."""
    for name in ("configs", "models", "docs"):
        (folder / name).mkdir(parents=True)
    compute = write_torchscript(model, folder / "models" / "model.ts")
    _write_json(folder / "configs" / "metadata.json", _metadata(model))
    _write_json(folder / "configs" / "inference.json", _inference(model))
    readme = _README.format(stage=model.stage.name, version=package_version())
    (folder / "docs" / "README.md").write_text(readme, encoding="utf-8")
    return compute


def _write_json(path: Path, data: Any) -> None:
    path.write_text(json.dumps(data, indent=2, sort_keys=False) + "\n", encoding="utf-8")


def _metadata(model: TrainedModel) -> dict[str, Any]:
    from importlib.metadata import version

    channels, outputs = len(model.settings.bank), model.stage.out_channels
    names = json.loads(model.metadata["output_channels"])
    return {
        "version": "1.0.0",
        "changelog": {"1.0.0": "exported"},
        "monai_version": version("monai"),
        "pytorch_version": version("torch").partition("+")[0],
        "numpy_version": version("numpy"),
        "task": "Liver and liver-tumor segmentation",
        "description": f"Stage {model.stage.name} of a livtrain cascade, step {model.step}. Not a medical device.",
        "authors": "livtrain",
        "copyright": "see the training data's licenses",
        "network_data_format": {
            "inputs": {
                "image": {
                    "type": "image", "format": "hounsfield", "modality": "CT", "num_channels": channels,
                    "spatial_shape": ["8*n", "8*n", "8*n"], "dtype": "float32", "value_range": [0, 1],
                    "is_patch_data": True, "channel_def": {str(k): w.name for k, w in enumerate(model.settings.bank)},
                }
            },
            "outputs": {
                "pred": {
                    "type": "image", "format": "segmentation", "num_channels": outputs,
                    "spatial_shape": ["8*n", "8*n", "8*n"], "dtype": "float32", "value_range": [],
                    "is_patch_data": True, "channel_def": {str(k): name for k, name in enumerate(names)},
                }
            },
        },
        "livtrain": model.metadata,
    }  # fmt: skip


def _inference(model: TrainedModel) -> dict[str, Any]:
    several = model.stage.out_channels > 1
    return {
        "imports": ["$import torch"],
        "bundle_root": ".",
        "image": "scan.nii.gz",
        "output_dir": "$@bundle_root + '/eval'",
        "device": "$torch.device('cuda' if torch.cuda.is_available() else 'cpu')",
        "network_def": "$torch.jit.load(@bundle_root + '/models/model.ts', map_location=@device).eval()",
        "preprocessing": {"_target_": "Compose", "transforms": _preprocessing(model)},
        "dataset": {"_target_": "Dataset", "data": [{"image": "@image"}], "transform": "@preprocessing"},
        "dataloader": {"_target_": "DataLoader", "dataset": "@dataset", "batch_size": 1, "num_workers": 0},
        "inferer": {
            "_target_": "SlidingWindowInferer",
            "roi_size": list(model.settings.patch_zyx),
            "sw_batch_size": model.settings.batch,
            "overlap": model.settings.overlap,
            "mode": "gaussian",
        },
        "postprocessing": {
            "_target_": "Compose",
            "transforms": [
                {"_target_": "Activationsd", "keys": "pred", "softmax" if several else "sigmoid": True},
                {"_target_": "SaveImaged", "keys": "pred", "output_dir": "@output_dir", "output_postfix": "prob"},
            ],
        },
        "evaluator": {
            "_target_": "SupervisedEvaluator",
            "device": "@device",
            "val_data_loader": "@dataloader",
            "network": "@network_def",
            "inferer": "@inferer",
            "postprocessing": "@postprocessing",
        },
        "run": ["$@evaluator.run()"],
    }


def _preprocessing(model: TrainedModel) -> list[dict[str, Any]]:
    """MONAI's arrays are (x, y, z); the network's (z, y, x): transposed after orientation and spacing."""
    windows = list(model.settings.bank)
    if unlike := [str(window) for window in windows if type(window) is not Window]:
        raise UsageError(
            "USAGE", f"MONAI bundle: channels {unlike} have no counterpart in MONAI; expected linear windows"
        )
    keys = [f"window_{k}" for k in range(len(windows))]
    steps: list[dict[str, Any]] = [
        {"_target_": "LoadImaged", "keys": "image"},
        {"_target_": "EnsureChannelFirstd", "keys": "image"},
        {"_target_": "Orientationd", "keys": "image", "axcodes": "LPS", "labels": None},
    ]
    if not model.preparation.is_native:
        z_mm, y_mm, x_mm = (-1.0 if mm is None else mm for mm in model.preparation.spacing_mm)  # -1 keeps an axis
        steps.append({"_target_": "Spacingd", "keys": "image", "pixdim": [x_mm, y_mm, z_mm], "mode": "bilinear"})
    steps.append({"_target_": "CopyItemsd", "keys": "image", "times": len(keys), "names": keys})
    steps += [
        {
            "_target_": "ScaleIntensityRanged", "keys": key, "a_min": window.low_hu, "a_max": window.high_hu,
            "b_min": 0.0, "b_max": 1.0, "clip": True,
        }
        for key, window in zip(keys, windows, strict=True)
    ]  # fmt: skip
    steps.append({"_target_": "ConcatItemsd", "keys": keys, "name": "image"})
    steps.append({"_target_": "Transposed", "keys": "image", "indices": [0, 3, 2, 1]})
    return steps
