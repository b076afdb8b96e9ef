"""Score a folder of predictions against references or a store."""

from livtrain.evaluate.comparison import Difference, compare
from livtrain.evaluate.evaluation import Evaluation, Pair, evaluate_folder, evaluate_pairs, pair_folder
from livtrain.evaluate.pairing import case_key
from livtrain.evaluate.references import Reference
from livtrain.evaluate.scoring import CaseScores, score_case
from livtrain.evaluate.summary import INTERVALS

__all__ = [
    "INTERVALS",
    "CaseScores",
    "Difference",
    "Evaluation",
    "Pair",
    "Reference",
    "case_key",
    "compare",
    "evaluate_folder",
    "evaluate_pairs",
    "pair_folder",
    "score_case",
]
