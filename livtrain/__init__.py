"""Training and prediction on top of a livprep store."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from livtrain.loader import Batch, PatchDataset, PatchLoader, PatchRequest

__all__ = ["Batch", "PatchDataset", "PatchLoader", "PatchRequest"]


def __getattr__(name: str) -> Any:
    """Import the loader, and with it torch, when it is asked for; commands start without either."""
    if name in __all__:
        from livtrain import loader

        return getattr(loader, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
