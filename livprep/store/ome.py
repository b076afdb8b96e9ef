"""OME-Zarr 0.5 metadata, with RFC-4 anatomical orientation, of images and label images."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from livprep.geometry import Geometry
from livprep.labels import LABEL_COLORS, Label
from livprep.store.layout import IMAGE, LABEL_IMAGE

AXES = ("z", "y", "x")
_TOWARD = {"z": "inferior-to-superior", "y": "anterior-to-posterior", "x": "right-to-left"}


def axis_coordinates(geometry: Geometry) -> dict[str, npt.NDArray[np.float64]]:
    """LPS positions in mm of the voxel centers along z, y and x.

    Along the array's own axes; for an oblique grid they start at the origin's component and the exact positions
    follow from `affine_lps`.
    """
    return {
        axis: geometry.origin_mm[2 - k] + np.arange(geometry.shape_zyx[k], dtype=np.float64) * geometry.spacing_mm[k]
        for k, axis in enumerate(AXES)
    }


def _multiscales(name: str, geometry: Geometry, path: str) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "axes": [
                {
                    "name": axis,
                    "type": "space",
                    "unit": "millimeter",
                    "orientation": {"type": "anatomical", "value": _TOWARD[axis]},
                }
                for axis in AXES
            ],
            "datasets": [
                {
                    "path": path,
                    "coordinateTransformations": [
                        {"type": "scale", "scale": list(geometry.spacing_mm)},
                        {"type": "translation", "translation": list(geometry.origin_mm[::-1])},
                    ],
                }
            ],
        }
    ]


def image_attributes(
    name: str, geometry: Geometry, limits: tuple[float, float], shown: tuple[float, float]
) -> dict[str, Any]:
    """The `ome` attribute of an image of one channel; `limits` and `shown` are value ranges for viewers."""
    return {
        "version": "0.5",
        "multiscales": _multiscales(name, geometry, IMAGE),
        "omero": {
            "channels": [
                {
                    "label": name,
                    "color": "FFFFFF",
                    "active": True,
                    "window": {"min": limits[0], "max": limits[1], "start": shown[0], "end": shown[1]},
                }
            ],
            "rdefs": {"model": "greyscale"},
        },
    }


def label_attributes(geometry: Geometry) -> dict[str, Any]:
    """The `ome` attribute of the label image."""
    return {
        "version": "0.5",
        "multiscales": _multiscales("liver_tumor", geometry, LABEL_IMAGE),
        "image-label": {
            "colors": [
                {"label-value": int(label), "rgba": [*color, 0 if label is Label.BACKGROUND else 255]}
                for label, color in LABEL_COLORS.items()
            ],
            "properties": [{"label-value": int(label), "class": label.name.lower()} for label in Label],
            "source": {"image": "../../"},
        },
    }
