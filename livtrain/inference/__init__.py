"""From scans to segmentations: the sliding window, the two stages, and whole folders."""

from livtrain.inference.folder import PredictReceipt, predict_folder
from livtrain.inference.models import StageModel, load_stage
from livtrain.inference.options import Prediction, PredictOptions
from livtrain.inference.predictor import Predictor
from livtrain.inference.scans import LoadedScan, Scan, find_scans
from livtrain.inference.window import sliding_window

__all__ = [
    "LoadedScan",
    "PredictOptions",
    "PredictReceipt",
    "Prediction",
    "Predictor",
    "Scan",
    "StageModel",
    "find_scans",
    "load_stage",
    "predict_folder",
    "sliding_window",
]
