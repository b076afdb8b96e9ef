"""One scan through the stages: liver, then tumor inside the predicted liver, brought back to the source grid."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from livprep.errors import StoreError, UsageError
from livprep.geometry import Geometry
from livprep.labels import Label, LabelArray
from livprep.prepare import Preparation, prepare, restore
from livprep.volume import LabelledVolume, LabelMap, Volume
from livtrain.checkpoint import load_checkpoint
from livtrain.config import Settings
from livtrain.inference.scans import LoadedScan
from livtrain.inference.window import FloatVolume, sliding_window
from livtrain.model import build_model, model_input
from livtrain.postprocess import (
    bounding_box,
    box_at_least,
    dilate_mm,
    drop_small,
    fill_holes,
    grow_box,
    largest_component,
)
from livtrain.stages import LIVER_MARGIN_MM, Stage, get_stage

BoolArray = npt.NDArray[np.bool_]
log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class StageModel:
    """A trained network with all that its input needs."""

    stage: Stage
    network: nn.Module
    settings: Settings
    preparation: Preparation


def load_stage(run: Path, expected: Sequence[str]) -> StageModel:
    """Load a run folder (its best checkpoint) or a checkpoint file.

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
    return StageModel(stage, network.eval(), settings, Preparation.from_dict(checkpoint.preparation))


@dataclass(frozen=True)
class PredictOptions:
    """Choices of prediction.

    Parameters
    ----------
    tta
        Mean over the 8 mirrorings; for networks that were trained with flips.
    keep_largest
        Keep the largest component of the liver only.
    min_lesion_ml
        Drop tumor components below this volume in ml.
    probabilities
        Hand back probabilities beside the labels.
    overlap
        Of neighboring patches; None takes the run's.
    """

    tta: bool = False
    keep_largest: bool = True
    min_lesion_ml: float = 0.0
    probabilities: bool = False
    overlap: float | None = None


@dataclass(frozen=True, eq=False)
class Prediction:
    """Labels 0, 1, 2 on the source's grid and axis order, and probabilities by name if they were asked for."""

    labels: LabelArray
    geometry: Geometry
    probabilities: Mapping[str, FloatVolume] = field(default_factory=dict)

    def volume_ml(self, lowest: Label) -> float:
        """Volume of the voxels with at least that label."""
        return int(np.count_nonzero(self.labels >= lowest)) * self.geometry.voxel_volume_ml


class Predictor:
    """Segments scans with the networks of one or two stages; several networks of a stage are averaged.

    Parameters
    ----------
    liver
        Networks of stage `liver`, or of stage `multiclass`, which give the tumor too.
    tumor
        Networks of stage `tumor`. They see the predicted liver dilated by 10 mm, never a reference.
    options
        Choices of prediction.
    device
        Where the networks run.

    Raises
    ------
    UsageError
        There is no network for the liver, or the networks of one list differ in stage.
    """

    def __init__(
        self,
        liver: Sequence[StageModel],
        tumor: Sequence[StageModel] = (),
        options: PredictOptions | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        stages = {model.stage.name for model in liver}
        if len(stages) != 1 or "tumor" in stages or {model.stage.name for model in tumor} - {"tumor"}:
            found = [model.stage.name for model in (*liver, *tumor)]
            raise UsageError(
                "USAGE",
                f"predict: found networks of the stages {found}; expected at least one for the liver, all of stage "
                "liver or all multiclass, and any number of stage tumor",
            )
        self._liver, self._tumor = tuple(liver), tuple(tumor)
        self._options = options or PredictOptions()
        flips = [(a.flip_z, a.flip_y, a.flip_x) for a in (model.settings.augment for model in (*liver, *tumor))]
        if self._options.tta and not all(all(flip) for flip in flips):
            log.warning("tta: a network was trained without flips of every axis; mirrored scans are new to it")
        self._device = torch.device(device)

    def predict(self, scan: LoadedScan) -> Prediction:
        """Segment one scan.

        Raises
        ------
        StoreError
            STORE_PREPARATION: the scan was resampled otherwise than the networks' training data.
        """
        prepared: dict[str, LabelledVolume] = {}
        stage = self._liver[0].stage
        values = _mean([self._whole(model, scan, prepared) for model in self._liver])
        labels = stage.labels(values)
        liver = labels >= Label.LIVER
        if self._options.keep_largest:
            liver = largest_component(liver)
        liver = fill_holes(liver)
        known: dict[str, FloatVolume] = {"liver": values[0] if len(values) == 1 else 1 - values[0]}
        tumor = (labels == Label.TUMOR) & liver
        if stage.out_channels > 1:
            known["tumor"] = values[Label.TUMOR]
        if self._tumor:
            inside = _mean([self._near(model, scan, prepared, liver) for model in self._tumor])
            tumor = (self._tumor[0].stage.labels(inside) == Label.TUMOR) & liver
            known["tumor"] = inside[0]
        tumor = drop_small(tumor, scan.source.voxel_volume_ml, self._options.min_lesion_ml)
        result = liver.astype(np.uint8)
        result[tumor] = Label.TUMOR
        return Prediction(result, scan.source, known if self._options.probabilities else {})

    def _whole(self, model: StageModel, scan: LoadedScan, prepared: dict[str, LabelledVolume]) -> FloatVolume:
        """Probabilities of the whole scan, `(K, z, y, x)` on the source grid."""
        volume = _prepare(model, scan, prepared)
        values = self._run(model, volume.image.hu)
        return restore(values, volume.geometry, scan.source)

    def _near(
        self, model: StageModel, scan: LoadedScan, prepared: dict[str, LabelledVolume], liver: BoolArray
    ) -> FloatVolume:
        """Tumor probabilities `(1, z, y, x)` on the source grid; 0 further than the margin from the liver."""
        volume = _prepare(model, scan, prepared)
        near = _near_liver(liver, scan.source, model.preparation)
        values = np.zeros((1, *volume.geometry.shape_zyx), dtype=np.float32)
        box = bounding_box(near)
        if box is not None:
            # At least a patch of real surroundings, as in training, instead of padding.
            box = box_at_least(box, model.settings.patch_zyx, near.shape)
            values[(slice(None), *box)] = self._run(model, volume.image.hu[box]) * near[box]
        return restore(values, volume.geometry, scan.source)

    def _run(self, model: StageModel, hu: npt.NDArray[np.int16]) -> FloatVolume:
        settings, options = model.settings, self._options
        return sliding_window(
            model.network,
            model_input(settings, hu),
            settings.patch_zyx,
            settings.overlap if options.overlap is None else options.overlap,
            self._device,
            batch=settings.batch,
            amp=settings.amp == "bf16" and self._device.type == "cuda",
            tta=options.tta,
        )


def _prepare(model: StageModel, scan: LoadedScan, prepared: dict[str, LabelledVolume]) -> LabelledVolume:
    """The scan as the network was trained on it; kept, for networks that share a preparation."""
    wanted = model.preparation
    if wanted.digest not in prepared:
        if scan.prepared is not None and not scan.prepared.is_native and scan.prepared != wanted:
            raise StoreError(
                "STORE_PREPARATION",
                f"{scan.name}: stored at spacing {scan.prepared.spacing_mm} mm (zyx), the run was trained at "
                f"{wanted.spacing_mm}; predict from the source files instead",
            )
        prepared[wanted.digest] = scan.volume if scan.prepared == wanted else prepare(scan.volume, wanted)
    return prepared[wanted.digest]


def _near_liver(liver: BoolArray, source: Geometry, preparation: Preparation) -> BoolArray:
    """The liver of the source grid, dilated by the margin, on the prepared grid."""
    void = Volume(np.zeros(source.shape_zyx, dtype=np.int16), source)
    moved = prepare(LabelledVolume(void, LabelMap(liver.astype(np.uint8), source)), preparation).label_map
    assert moved is not None
    mask: BoolArray = moved.labels > 0
    box = bounding_box(mask)
    if box is None:
        return mask
    spacing_mm = moved.geometry.spacing_mm
    z, y, x = (int(LIVER_MARGIN_MM // step) + 1 for step in spacing_mm)
    box = grow_box(box, (z, y, x), moved.geometry.shape_zyx)
    mask[box] = dilate_mm(torch.from_numpy(mask[box]), spacing_mm, LIVER_MARGIN_MM).numpy()
    return mask


def _mean(values: Sequence[FloatVolume]) -> FloatVolume:
    total = values[0]
    for other in values[1:]:
        total = total + other
    return total / np.float32(len(values)) if len(values) > 1 else total
