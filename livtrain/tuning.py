"""Choosing post-processing on the validation cases of a run; its test cases are never looked at.

Each validation case is segmented once, on the store's grid. Every combination of choices is then scored by the Dice
of each case (1 where prediction and reference are both empty, as in the LiTS challenge), and the best one is kept if
its mean is better than that of the defaults by `min_gain`; of equals, the one with the fewest changes.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage

from livprep.errors import UsageError
from livprep.labels import Label, LabelArray
from livprep.store import Store
from livprep.volume import LabelledVolume, Volume
from livtrain.checkpoint import load_checkpoint, run_folders
from livtrain.cleanup import DEFAULT, Cleanup, clean_liver, write_tuned
from livtrain.inference import LoadedScan, PredictOptions, Predictor, StageModel, load_stage
from livtrain.postprocess import BoolArray, bounding_box

MIN_GAIN = 0.001
"""Mean Dice by which tuned choices must be better than the defaults."""
EQUAL_DICE = 1e-4
"""Choices whose mean Dice differ by less are equals."""
_LOWEST = 0.2
_LIVER: dict[str, tuple[Any, ...]] = {
    "liver_threshold": (None, 0.3, 0.4, 0.6, 0.7),
    "keep_largest": (True, False),
    "fill_holes": (True, False),
}
_TUMOR: dict[str, tuple[Any, ...]] = {
    "tumor_threshold": (None, _LOWEST, 0.3, 0.4, 0.6, 0.7),
    "tumor_inside_liver": (True, False),
    "min_lesion_ml": (0.0, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0),
}
Scores = dict[tuple[Any, ...], float]
"""Dice by the values of the choices."""


@dataclass(frozen=True)
class Tuning:
    """What `tune` found: mean Dice by structure with the defaults and with the choices, and the choices."""

    run: str
    stage: str
    cases: tuple[str, ...]
    tried: int
    before: dict[str, float] = field(default_factory=dict)
    after: dict[str, float] = field(default_factory=dict)
    chosen: dict[str, Any] = field(default_factory=dict)
    path: str = ""


@dataclass(frozen=True, eq=False)
class _Case:
    """One segmented case, cropped: probabilities (None where the stage has none), the predicted liver, the labels."""

    liver_p: npt.NDArray[np.float16]
    tumor_p: npt.NDArray[np.float16] | None
    liver: BoolArray
    reference: LabelArray
    voxel_ml: float


def tune(
    run: Path,
    store: Store,
    *,
    liver: Sequence[Path] = (),
    device: torch.device | str = "cpu",
    min_gain: float = MIN_GAIN,
    say: Callable[[str], None] = lambda text: None,
) -> Tuning:
    """Choose post-processing for a run and leave it there; what was tuned before is replaced.

    Parameters
    ----------
    run
        A run folder of any stage, or one of folds: each then segments its own validation cases, and all get the
        choices that are best over all of them.
    store
        The store with the run's validation cases.
    liver
        For a tumor run: the runs whose liver it is confined to.
    device
        Where the networks run.
    min_gain
        Mean Dice to gain; less leaves the defaults.
    say
        Takes one line a case.

    Raises
    ------
    UsageError
        The run has no validation case that the store holds with labels, or a tumor run comes without a liver run.
    """
    folders = run_folders(run)
    models = [replace(load_stage(folder, ("liver", "tumor", "multiclass")), cleanup=Cleanup()) for folder in folders]
    name = models[0].stage.name
    if name == "tumor" and not liver:
        raise UsageError("USAGE", f"{run}: of stage tumor, whose liver must be predicted first; expected --liver RUN")
    livers = [_Liver.load(path) for each in liver for path in run_folders(each)] if name == "tumor" else []
    cases: list[str] = []
    with tempfile.TemporaryDirectory(prefix="livtrain-tune-") as temporary:
        files: list[Path] = []
        for folder, model in zip(folders, models, strict=True):
            for case_id in _validation_cases(folder, store, say):
                files.append(Path(temporary) / f"{len(files)}.npz")
                _segment(_predictor(model, livers, case_id, device), store, case_id, files[-1], name)
                cases.append(case_id)
                say(f"{case_id}: segmented")
        found = _choose(name, files, min_gain)
    cleanup = Cleanup(**{key: value for key, value in found.chosen.items() if value is not None})
    facts = {"stage": name, "cases": cases, "dice_before": found.before, "dice_after": found.after}
    paths = [write_tuned(folder, cleanup, **facts) for folder in folders]
    return replace(found, run=str(run), cases=tuple(cases), path=str(paths[0] if len(paths) == 1 else run))


@dataclass(frozen=True, eq=False)
class _Liver:
    """A network for the liver, and the cases that it was trained on."""

    model: StageModel
    train: frozenset[str]

    @classmethod
    def load(cls, run: Path) -> _Liver:
        """Of a run folder."""
        train = load_checkpoint(run).cases.get("train", [])
        return cls(load_stage(run, ("liver", "multiclass")), frozenset(train))


def _predictor(model: StageModel, livers: Sequence[_Liver], case_id: str, device: torch.device | str) -> Predictor:
    """The networks for a case: of the livers those that were not trained on it, where there are any (folds)."""
    options = PredictOptions(probabilities=True)
    if not livers:
        return Predictor([model], (), options, device)
    unseen = [each.model for each in livers if case_id not in each.train]
    return Predictor(unseen or [each.model for each in livers], [model], options, device)


def _validation_cases(run: Path, store: Store, say: Callable[[str], None]) -> tuple[str, ...]:
    """The run's own validation cases, without any that is a test case or shows a test patient today."""
    checkpoint = load_checkpoint(run)
    recorded = store.read_split(checkpoint.settings.split)
    held_out = {store[case_id].patient for case_id in (recorded.test if recorded else ()) if case_id in store}
    wanted = [case_id for case_id in checkpoint.cases.get("val", []) if case_id in store and store[case_id].has_labels]
    if tested := [case_id for case_id in wanted if store[case_id].patient in held_out]:
        say(f"left out, for the split now has them in test: {', '.join(tested)}")
    chosen = tuple(case_id for case_id in wanted if case_id not in tested)
    if not chosen:
        raise UsageError(
            "SPLIT_INVALID",
            f"{run}: none of its validation cases is in {store.path} with labels; train with a split that has some",
        )
    return chosen


def _segment(predictor: Predictor, store: Store, case_id: str, path: Path, stage: str) -> None:
    case = store[case_id]
    volume = LabelledVolume(Volume(case.read_hu(), case.geometry))
    # the store's grid is the source here, so that nothing is resampled twice
    found = predictor.predict(LoadedScan(case_id, volume, store.preparation, case.geometry, case.geometry))
    reference, liver_p, tumor_p = case.read_labels(), found.probabilities["liver"], found.probabilities.get("tumor")
    liver = found.labels >= Label.LIVER
    seen = (reference > 0) | liver | ((liver_p if tumor_p is None else tumor_p) >= _LOWEST)
    if stage == "multiclass":
        seen |= liver_p >= _LOWEST
    box = bounding_box(seen) or (slice(0, 1), slice(0, 1), slice(0, 1))
    arrays: dict[str, Any] = {"liver_p": liver_p[box], "liver": liver[box], "reference": reference[box]}
    if tumor_p is not None:
        arrays["tumor_p"] = tumor_p[box]
    np.savez(path, voxel_ml=np.float64(case.geometry.voxel_volume_ml), **arrays)


def _load(path: Path) -> _Case:
    with np.load(path) as data:
        tumor_p = data.get("tumor_p")
        return _Case(data["liver_p"], tumor_p, data["liver"], data["reference"], float(data["voxel_ml"]))


def _choose(stage: str, files: Sequence[Path], min_gain: float) -> Tuning:
    """The best choices for the structures that a stage finds; the liver first, the tumor inside that."""
    chosen: dict[str, Any] = {}
    before, after, tried = {}, {}, 0
    if stage != "tumor":
        found = best((_liver_scores(_load(path)) for path in files), _LIVER, min_gain)
        chosen.update(found.changed)
        before["liver"], after["liver"], tried = found.before, found.after, tried + found.tried
    if stage != "liver":
        cleanup = Cleanup(**chosen).over(DEFAULT)
        found = best((_tumor_scores(_load(path), stage, cleanup) for path in files), _TUMOR, min_gain)
        chosen.update(found.changed)
        before["tumor"], after["tumor"], tried = found.before, found.after, tried + found.tried
    return Tuning("", stage, (), tried, before, after, chosen)


@dataclass(frozen=True)
class Best:
    """Mean Dice with the defaults and with the choices, how many were tried, and what changed."""

    before: float
    after: float
    tried: int
    changed: dict[str, Any]


def best(scores: Iterable[Scores], offered: Mapping[str, Sequence[Any]], min_gain: float) -> Best:
    """The choices with the best mean over cases; the first value of each choice is the default."""
    rows = list(scores)
    means = {values: float(np.mean([row[values] for row in rows])) for values in itertools.product(*offered.values())}
    default = tuple(values[0] for values in offered.values())
    top = max(means.values())

    def changes(values: tuple[Any, ...]) -> dict[str, Any]:
        return {name: value for name, value, usual in zip(offered, values, default, strict=True) if value != usual}

    winner = min((v for v in means if means[v] >= top - EQUAL_DICE), key=lambda v: (len(changes(v)), -means[v]))
    if means[winner] - means[default] < min_gain:
        winner = default
    return Best(means[default], means[winner], len(means), changes(winner))


def _liver_scores(case: _Case) -> Scores:
    reference = case.reference >= Label.LIVER
    scores: Scores = {}
    for values in itertools.product(*_LIVER.values()):
        cleanup = Cleanup(**dict(zip(_LIVER, values, strict=True)))
        scores[values] = _dice(clean_liver(_liver_mask(case, cleanup.liver_threshold), cleanup), reference)
    return scores


def _liver_mask(case: _Case, threshold: float | None) -> BoolArray:
    """The liver as `predict` finds it before post-processing."""
    p = case.liver_p.astype(np.float32)
    if threshold is not None or case.tumor_p is None:
        return np.asarray(p >= (threshold or 0.5))
    return np.asarray(np.maximum(p - case.tumor_p, case.tumor_p) > 1 - p)


def _tumor_scores(case: _Case, stage: str, cleanup: Cleanup) -> Scores:
    assert case.tumor_p is not None
    liver, p = case.liver, case.tumor_p.astype(np.float32)
    if stage == "multiclass":
        liver = clean_liver(_liver_mask(case, cleanup.liver_threshold), cleanup)
    reference = case.reference == Label.TUMOR
    scores: Scores = {}
    for threshold, inside in itertools.product(_TUMOR["tumor_threshold"], _TUMOR["tumor_inside_liver"]):
        if threshold is None and stage == "multiclass":
            whole = case.liver_p.astype(np.float32)
            mask = p > np.maximum(1 - whole, whole - p)
        else:
            mask = p >= (threshold or 0.5)
        for min_ml, value in _by_size(mask & liver if inside else mask, reference, case.voxel_ml):
            scores[threshold, inside, min_ml] = value
    return scores


def _by_size(mask: BoolArray, reference: BoolArray, voxel_ml: float) -> Iterator[tuple[float, float]]:
    """Dice for each least lesion volume, from one labelling of the components."""
    components, _ = ndimage.label(mask)
    sizes = np.bincount(components.ravel())
    hits = np.bincount(components[reference], minlength=len(sizes))
    wanted = int(np.count_nonzero(reference))
    for min_ml in _TUMOR["min_lesion_ml"]:
        kept = sizes * voxel_ml >= min_ml * (1 - 1e-9)
        kept[0] = False
        total = int(sizes[kept].sum()) + wanted
        yield min_ml, 2 * int(hits[kept].sum()) / total if total else 1.0


def _dice(mask: BoolArray, reference: BoolArray) -> float:
    total = int(np.count_nonzero(mask)) + int(np.count_nonzero(reference))
    return 2 * int(np.count_nonzero(mask & reference)) / total if total else 1.0
