"""Score a folder of predictions against references or a store."""

from livtrain.evaluate.evaluation import CaseScores, Evaluation, evaluate_folder, score_case
from livtrain.evaluate.pairing import case_key
from livtrain.evaluate.references import Reference

__all__ = ["CaseScores", "Evaluation", "Reference", "case_key", "evaluate_folder", "score_case"]
