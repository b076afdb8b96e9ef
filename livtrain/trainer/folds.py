"""Cross-validation: one run for each fold of a recorded split."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from livprep.errors import UsageError
from livtrain.config import Settings
from livtrain.trainer.distributed import joined
from livtrain.trainer.journal import write_json
from livtrain.trainer.loop import fit
from livtrain.trainer.plan import Say, TrainingStore
from livtrain.trainer.summary import StepReport, Summary, read_summary

ALL = "all"


def fold_numbers(store: TrainingStore, split: str, wanted: str) -> list[int]:
    """Folds to train: `all` that are recorded as `<split>-fold<K>`, or the one that is asked for.

    Raises
    ------
    UsageError
        SPLIT_INVALID: there are none, or not that one.
    """
    matches = [re.fullmatch(re.escape(split) + r"-fold(\d+)", name) for name in store.split_names()]
    known = sorted(int(match[1]) for match in matches if match)
    if not known:
        raise UsageError(
            "SPLIT_INVALID", f"--fold {wanted}: split {split!r} has no folds; run `livprep split --folds 5` first"
        )
    if wanted == ALL:
        return known
    if not wanted.isdecimal() or int(wanted) not in known:
        listed = ", ".join(map(str, known))
        raise UsageError(
            "SPLIT_INVALID", f"--fold {wanted}: split {split!r} has the folds {listed}; expected one or all"
        )
    return [int(wanted)]


def fit_folds(
    store: TrainingStore,
    settings: Settings,
    run_dir: Path,
    folds: Sequence[int],
    *,
    resume: bool = False,
    say: Say = lambda _: None,
    on_step: Callable[[StepReport], None] = lambda _: None,
) -> list[Summary]:
    """Train folds one after the other into `<run_dir>/fold-<K>`; with `resume`, finished ones are passed over.

    `<run_dir>/folds.json` holds what is finished, and the mean of the best validation Dice.
    """
    with joined(settings.device) as ranks:
        summaries = []
        for fold in folds:
            folder = run_dir / f"fold-{fold}"
            own = settings.replace(split=f"{settings.split}-fold{fold}")
            done = read_summary(folder) if resume else None
            if done is not None and (done.stopped_by != "steps" or done.steps >= (settings.steps or 0)):
                say(f"fold {fold}: finished before ({done.steps} steps)")
                summaries.append(done)
                continue
            if ranks.first:
                say(f"fold {fold} of {', '.join(map(str, folds))}")
            summaries.append(fit(store, own, folder, resume=resume, say=say, on_step=on_step))
        if ranks.first:
            _record(run_dir)
        return summaries


def _record(run_dir: Path) -> None:
    """Write what all finished folds of a folder came to, whoever trained them."""
    found = {folder.name: read_summary(folder) for folder in sorted(run_dir.glob("fold-*"))}
    finished = {name: asdict(summary) for name, summary in found.items() if summary is not None}
    dice = [each["best_val_dice"] for each in finished.values() if each["best_val_dice"] is not None]
    mean = sum(dice) / len(dice) if dice else None
    write_json(run_dir / "folds.json", {"mean_val_dice": mean, "folds": finished})
