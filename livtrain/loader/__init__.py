"""Batches of patches: planned, read, brought to a device (`PatchLoader`), or fed to torch's DataLoader."""

from __future__ import annotations

from livtrain.loader.batch import Batch, Deliver, Margin
from livtrain.loader.face import PatchDataset
from livtrain.loader.request import LoaderCase, PatchRequest, Shares
from livtrain.loader.streaming import PatchLoader
from livtrain.loader.tiers import TIERS, Tier, TierName, choose_tier

__all__ = [
    "TIERS",
    "Batch",
    "Deliver",
    "LoaderCase",
    "Margin",
    "PatchDataset",
    "PatchLoader",
    "PatchRequest",
    "Shares",
    "Tier",
    "TierName",
    "choose_tier",
]
