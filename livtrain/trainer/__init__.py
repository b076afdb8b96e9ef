"""Training: `fit` and what it reports."""

from livtrain.trainer.folds import fit_folds, fold_numbers
from livtrain.trainer.loop import fit
from livtrain.trainer.plan import Plan, TrainingStore, default_preset, make_plan, settings_for_run
from livtrain.trainer.stopping import Stopped
from livtrain.trainer.summary import StepReport, Summary

__all__ = [
    "Plan",
    "StepReport",
    "Stopped",
    "Summary",
    "TrainingStore",
    "default_preset",
    "fit",
    "fit_folds",
    "fold_numbers",
    "make_plan",
    "settings_for_run",
]
