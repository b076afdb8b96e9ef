"""The network of a run with all that its user needs to know, and the check that an export computes the same."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from livprep.errors import RunError
from livprep.prepare import Preparation
from livprep.provenance import package_version
from livtrain.checkpoint import load_checkpoint
from livtrain.config import Settings, WindowSetting
from livtrain.model import build_model, learned_bank
from livtrain.networks import WindowedNetwork
from livtrain.stages import Stage, get_stage

TOLERANCE = 1e-4
"""Largest difference of a logit between run and export, as a share of the largest logit where that is above 1."""
STRIDE = 8
"""Every size of the input must be a multiple of this."""
_CHECKED = ((1, (16, 24, 16)), (2, (8, 16, 32)))
"""Batch and zyx of the inputs on which an export is compared."""

Compute = Callable[[npt.NDArray[np.float32]], npt.NDArray[np.float32]]
"""Windowed channels `(B, C, z, y, x)` in 0...1 to logits `(B, K, z, y, x)`."""


@dataclass(frozen=True, eq=False)
class TrainedModel:
    """A run's best network, in evaluation mode on the CPU."""

    network: nn.Module
    settings: Settings
    stage: Stage
    preparation: Preparation
    step: int

    @property
    def example(self) -> Tensor:
        """An input `(1, C, 16, 32, 24)`: three different sizes, so that no axis is taken for another."""
        return torch.rand((1, len(self.settings.bank), 16, 32, 24), generator=torch.Generator().manual_seed(0))

    @property
    def metadata(self) -> dict[str, str]:
        """Settings, preparation and meaning of input and output, as text."""
        windows = [WindowSetting.of(window).model_dump(mode="json") for window in self.settings.bank]
        labels = ["background", "liver", "tumor"] if self.stage.out_channels > 1 else [self.stage.name]
        texts = {
            "settings": self.settings.model_dump(mode="json"),
            "preparation": self.preparation.as_dict(),
            "windows": windows,
            "output_channels": labels,
        }
        return {
            "created_with": f"livtrain {package_version()}",
            "stage": self.stage.name,
            "step": str(self.step),
            "input": "(batch, window, z, y, x) float32 in 0...1, every size a multiple of 8, LPS order",
            "output": "(batch, channel, z, y, x) logits",
            "activation": "softmax over channels" if self.stage.out_channels > 1 else "sigmoid",
            **{name: json.dumps(value, sort_keys=True) for name, value in texts.items()},
        }


def load_model(run: Path) -> TrainedModel:
    """Load a run folder (its best checkpoint) or a checkpoint file.

    Raises
    ------
    RunError
        RUN_MISSING or CHECKPOINT_CORRUPT.
    """
    checkpoint = load_checkpoint(run)
    settings = checkpoint.settings
    stage = get_stage(settings.stage)
    network = build_model(settings, stage.out_channels)
    network.load_state_dict(checkpoint.weights)  # what `predict` takes: averaged ones where they were kept
    if (bank := learned_bank(network)) is not None:  # what was learned is exported as fixed windows
        assert isinstance(network, WindowedNetwork)
        if settings.window_softness:
            raise RunError("EXPORT_DIFFERS", f"{run}: soft windows have no fixed ones that equal them")
        network, fixed = network.network, tuple(WindowSetting.of(window) for window in bank)
        settings = settings.replace(windows=fixed, learn_windows=False)
    preparation = Preparation.from_dict(checkpoint.preparation)
    return TrainedModel(network.eval(), settings, stage, preparation, checkpoint.step)


def largest_difference(model: TrainedModel, compute: Compute) -> float:
    """Compare an export with the network on random inputs of two sizes.

    Raises
    ------
    RunError
        EXPORT_DIFFERS: a logit differs by more than `TOLERANCE`, or the shapes do.
    """
    generator = torch.Generator().manual_seed(1)
    apart = []
    for batch, shape_zyx in _CHECKED:
        x = torch.rand((batch, len(model.settings.bank), *shape_zyx), generator=generator)
        with torch.no_grad():
            expected = model.network(x).numpy()
        found = compute(x.numpy())
        if found.shape != expected.shape:
            raise RunError("EXPORT_DIFFERS", f"export: logits of {found.shape}, expected {expected.shape}")
        scale = max(1.0, float(np.abs(expected).max()))
        apart.append(float(np.abs(found - expected).max()) / scale)
    worst = float(np.max(apart))  # unlike Python's max, numpy's hands on a NaN
    if not worst <= TOLERANCE:  # NaN is a difference too
        raise RunError("EXPORT_DIFFERS", f"export: logits differ by {worst:.2g}, expected at most {TOLERANCE:g}")
    return worst
