"""Score a folder of predictions against references or a store."""

from livtrain.evaluate.comparison import Difference, compare
from livtrain.evaluate.evaluation import CaseScores, Evaluation, evaluate_folder, score_case
from livtrain.evaluate.pairing import case_key
from livtrain.evaluate.references import Reference

__all__ = [
    "CaseScores",
    "Difference",
    "Evaluation",
    "Reference",
    "case_key",
    "compare",
    "evaluate_folder",
    "score_case",
]
