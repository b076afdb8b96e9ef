"""livprep: raw 3DIRCADb and LiTS to chunked Zarr stores for liver and liver-tumor segmentation in CT."""

from __future__ import annotations

from typing import TYPE_CHECKING

from livprep.provenance import package_version

if TYPE_CHECKING:
    from livprep.store import CaseStore, Store, open_store

__version__ = package_version()

__all__ = ["CaseStore", "Store", "__version__", "open_store"]


def __getattr__(name: str) -> object:
    # Lazy, so that `livprep --help` answers without importing zarr.
    if name in {"CaseStore", "Store", "open_store"}:
        from livprep import store

        return getattr(store, name)
    raise AttributeError(name)
