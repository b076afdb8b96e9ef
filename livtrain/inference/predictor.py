"""One scan through the stages: liver, then tumor inside the predicted liver, brought back to the source grid.

Probabilities pass through in slabs of some slices: network, way back to the source's grid, mean over networks, labels.
Whole volumes are held of HU (int16), channels (uint8), labels (uint8) and, while components are found, int32; and of
probabilities (float16) only where they are asked for or a CRF needs them.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch

from livprep.errors import UsageError
from livprep.geometry import canonical_axes
from livprep.labels import Label, LabelArray
from livprep.prepare import restore_slabs
from livtrain.cleanup import DEFAULT, Cleanup, clean_liver, clean_tumor
from livtrain.crf import CrfSettings
from livtrain.inference.inputs import ScanInputs, between, mean_slabs, placed
from livtrain.inference.memory import MOST_PATCHES
from livtrain.inference.models import StageModel
from livtrain.inference.options import Prediction, PredictOptions
from livtrain.inference.scans import LoadedScan
from livtrain.inference.smoothing import Known, own_hu, smooth
from livtrain.inference.window import Clock, FloatVolume, Slab, WindowSettings, computes_bf16, window_slabs
from livtrain.postprocess import BoolArray, bounding_box, box_at_least
from livtrain.stages import Stage

log = logging.getLogger(__name__)


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
        self.tuned = _agreed(self._tumor, "tumor").over(_agreed(self._liver, "liver"))
        self.cleanup = self._options.chosen.over(self.tuned).over(DEFAULT)

    def predict(self, scan: LoadedScan) -> Prediction:
        """Segment one scan.

        Raises
        ------
        StoreError
            STORE_PREPARATION: the scan was resampled otherwise than the networks' training data.
        SourceError
            CASE_TOO_LARGE: a patch does not fit into the memory.
        """
        started, clock = time.perf_counter(), Clock()
        axes, canonical = canonical_axes(scan.source)
        inputs = ScanInputs(scan)
        stage = self._liver[0].stage
        hu = None if self._options.crf is None else own_hu(scan)
        known = Known(canonical, self._options.probabilities or hu is not None)
        result = self._first(inputs, scan, known, clock)
        if hu is not None:
            self._smooth_first(result, hu, known)
        liver = clean_liver(result >= Label.LIVER, self.cleanup)
        tumor = result == Label.TUMOR if stage.out_channels > 1 else np.zeros_like(liver)
        if self._tumor:
            inputs.keep_only(self._tumor)
            tumor = self._second(inputs, scan, liver, known, clock)
            if hu is not None:
                self._smooth("tumor", tumor, self.cleanup.tumor_threshold, hu, known)
        result[...] = liver
        result[clean_tumor(tumor, liver, canonical.voxel_volume_ml, self.cleanup)] = Label.TUMOR
        return Prediction(
            np.ascontiguousarray(axes.invert(result)),
            scan.source,
            known.turned(axes) if self._options.probabilities else {},
            time.perf_counter() - started,
            clock.network_s,
        )

    def _first(self, inputs: ScanInputs, scan: LoadedScan, known: Known, clock: Clock) -> LabelArray:
        """Labels of stage 1 in LPS order."""
        stage, cleanup = self._liver[0].stage, self.cleanup
        labels = np.empty(known.canonical.shape_zyx, dtype=np.uint8)

        def whole(model: StageModel) -> Iterator[Slab]:
            slabs = window_slabs(model.network, inputs.channels(model), self._window(model, clock), self._device)
            return restore_slabs(slabs, inputs.grid(model), scan.source)

        for start, values in mean_slabs([whole(model) for model in self._liver]):
            foreground = values[0] if len(values) == 1 else 1 - values[0]
            labels[start : start + values.shape[1]] = _first_labels(stage, values, foreground, cleanup)
            known.add("liver", start, foreground)
            if len(values) > 1:
                known.add("tumor", start, values[Label.TUMOR])
        return labels

    def _second(self, inputs: ScanInputs, scan: LoadedScan, liver: BoolArray, known: Known, clock: Clock) -> BoolArray:
        """Tumor of stage 2 in LPS order, from the predicted liver's surroundings."""
        mask = np.zeros(known.canonical.shape_zyx, dtype=np.bool_)
        threshold = self.cleanup.tumor_threshold

        def around(model: StageModel) -> Iterator[Slab]:
            near = inputs.near_liver(liver, known.canonical, model)
            box = bounding_box(near)
            slabs: Iterator[Slab] = iter(())
            if box is not None:
                # At least a patch of real surroundings, as in training, instead of padding.
                box = box_at_least(box, model.settings.patch_zyx, near.shape)
                part = inputs.channels(model)[(slice(None), *box)]
                slabs = placed(window_slabs(model.network, part, self._window(model, clock), self._device), box, near)
            return restore_slabs(between(slabs, near.shape), inputs.grid(model), scan.source)

        for start, values in mean_slabs([around(model) for model in self._tumor]):
            part = slice(start, start + values.shape[1])
            if threshold is None:
                mask[part] = self._tumor[0].stage.labels(values) == Label.TUMOR
            else:
                mask[part] = values[0] >= threshold
            known.add("tumor", start, values[0])
        return mask

    def _smooth_first(self, labels: LabelArray, hu: npt.NDArray[np.int16], known: Known) -> None:
        """Stage 1's labels after the CRF, in place."""
        liver = labels >= Label.LIVER
        self._smooth("liver", liver, self.cleanup.liver_threshold, hu, known)
        tumor = labels == Label.TUMOR
        if "tumor" in known.values:
            self._smooth("tumor", tumor, self.cleanup.tumor_threshold, hu, known)
        labels[...] = liver
        labels[tumor] = Label.TUMOR

    def _smooth(
        self, name: str, mask: BoolArray, threshold: float | None, hu: npt.NDArray[np.int16], known: Known
    ) -> None:
        smooth(name, mask, threshold, known, hu, CrfSettings(planar=self._options.crf == "2d"), self._device)

    def _window(self, model: StageModel, clock: Clock) -> WindowSettings:
        settings, options = model.settings, self._options
        trained = settings.amp == "bf16" and self._device.type == "cuda" and computes_bf16(self._device)
        return WindowSettings(
            settings.patch_zyx,
            settings.overlap if options.overlap is None else options.overlap,
            options.batch,
            trained if options.amp is None else options.amp,
            options.tta,
            options.accumulate,
            # more at once make a CPU no faster
            most=settings.batch if self._device.type == "cpu" else MOST_PATCHES,
            clock=clock,
        )


def _first_labels(stage: Stage, values: FloatVolume, foreground: FloatVolume, cleanup: Cleanup) -> LabelArray:
    """Labels of some slices `(K, z, y, x)`: by the stage's rule, or by thresholds where they were chosen."""
    labels = stage.labels(values)
    if cleanup.liver_threshold is not None:
        labels = np.where(foreground >= cleanup.liver_threshold, np.maximum(labels, np.uint8(Label.LIVER)), np.uint8(0))
    if cleanup.tumor_threshold is not None and len(values) > 1:
        tumor = values[Label.TUMOR] >= cleanup.tumor_threshold
        labels = np.where(tumor, np.uint8(Label.TUMOR), np.minimum(labels, np.uint8(Label.LIVER)))
    return labels


def _agreed(models: Sequence[StageModel], what: str) -> Cleanup:
    """What was tuned for all networks of a stage alike."""
    tuned = {model.cleanup for model in models}
    if len(tuned) > 1:
        log.warning("%s: the runs were tuned to different post-processing; none of it is used", what)
    return tuned.pop() if len(tuned) == 1 else Cleanup()
