"""A trained network for other programs: safetensors, ONNX, TorchScript, MONAI bundle.

Every form computes logits from windowed channels in 0...1; what prepares a scan for it travels as metadata. An export
is checked against the run's network before it appears.
"""

from __future__ import annotations

from livtrain.export.exporting import SUFFIXES, ExportForm, ExportReceipt, export_run
from livtrain.export.model import TOLERANCE, TrainedModel, load_model

__all__ = ["SUFFIXES", "TOLERANCE", "ExportForm", "ExportReceipt", "TrainedModel", "export_run", "load_model"]
