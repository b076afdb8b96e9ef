"""Trained networks, as prediction takes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import nn

from livprep.errors import UsageError
from livprep.prepare import Preparation
from livtrain.checkpoint import load_checkpoint
from livtrain.cleanup import Cleanup, read_tuned
from livtrain.config import Settings
from livtrain.model import build_model
from livtrain.stages import Stage, get_stage


@dataclass(frozen=True, eq=False)
class StageModel:
    """A trained network with all that its input needs, and the post-processing tuned for it."""

    stage: Stage
    network: nn.Module
    settings: Settings
    preparation: Preparation
    cleanup: Cleanup = field(default_factory=Cleanup)


def load_stage(run: Path, expected: Sequence[str]) -> StageModel:
    """Load a run folder (its best checkpoint and tuned post-processing) or a checkpoint file.

    Raises
    ------
    RunError
        RUN_MISSING or CHECKPOINT_CORRUPT.
    UsageError
        The run trained another stage than one of `expected`.
    """
    checkpoint = load_checkpoint(run)
    settings = checkpoint.settings
    if settings.stage not in expected:
        raise UsageError("USAGE", f"{run}: trained for stage {settings.stage}, expected {' or '.join(expected)}")
    stage = get_stage(settings.stage)
    network = build_model(settings, stage.out_channels)
    network.load_state_dict(checkpoint.weights)
    preparation = Preparation.from_dict(checkpoint.preparation)
    return StageModel(stage, network.eval(), settings, preparation, read_tuned(run))
