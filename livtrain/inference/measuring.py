"""How fast a prediction is on this machine, and what memory it takes."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch

from livprep.prepare import Preparation
from livtrain.config import Settings, WindowSetting
from livtrain.inference.models import StageModel
from livtrain.inference.predictor import Predictor
from livtrain.inference.scans import Scan
from livtrain.networks import build_network
from livtrain.stages import StageName, get_stage


@dataclass(frozen=True)
class PredictSpeed:
    """One prediction, without writing; `peak_memory_bytes` is the process's so far (`device_` the CUDA device's)."""

    case: str
    shape_zyx: tuple[int, int, int]
    device: str
    load_s: float
    seconds: float
    network_s: float
    network_share: float
    voxels_per_s: float
    peak_memory_bytes: int
    device_memory_bytes: int


def untrained(stage: StageName, settings: Settings, preparation: Preparation) -> StageModel:
    """A network of random weights: as fast as a trained one of the same settings."""
    if isinstance(settings.windows, str):
        settings = settings.replace(windows=(WindowSetting(name="wl40_ww220", wl=40, ww=220),))
    torch.manual_seed(settings.seed)
    made = get_stage(stage)
    network = build_network(settings.network, len(settings.bank), made.out_channels, settings.width)
    return StageModel(made, network.eval(), settings.replace(stage=stage), preparation)


def measure_predictions(scans: Iterable[Scan], predictor: Predictor, device: torch.device) -> Iterator[PredictSpeed]:
    """Predict scans one after the other and drop the results."""
    for scan in scans:
        began = time.perf_counter()
        loaded = scan.load()
        load_s = time.perf_counter() - began
        found = predictor.predict(loaded)
        shape = loaded.source.shape_zyx
        yield PredictSpeed(
            case=scan.name,
            shape_zyx=shape,
            device=str(device),
            load_s=load_s,
            seconds=found.seconds,
            network_s=found.network_s,
            network_share=found.network_s / found.seconds,
            voxels_per_s=shape[0] * shape[1] * shape[2] / found.seconds,
            peak_memory_bytes=peak_memory_bytes(),
            device_memory_bytes=torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0,
        )


def peak_memory_bytes() -> int:
    """Most memory that this process ever held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts KiB
