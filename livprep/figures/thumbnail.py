"""A case as a small strip for a page of many: drawn on pixels, for speed and few bytes."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy import ndimage

from livprep.figures.montage import Plane
from livprep.labels import LABEL_COLORS, Label, LabelArray

HEIGHT = 150
"""Pixels of every plane; its width follows from its millimeters."""
_QUALITY, _GAP = 72, 3


def draw_thumbnail(planes: Sequence[Plane]) -> bytes:
    """Planes side by side as WebP, of one height, contours one pixel wide."""
    strips = [_pixels(plane) for plane in planes]
    gap = np.zeros((HEIGHT, _GAP, 3), dtype=np.uint8)
    parts = [part for strip in strips for part in (strip, gap)][:-1]
    buffer = io.BytesIO()
    Image.fromarray(np.concatenate(parts, axis=1)).save(buffer, "WEBP", quality=_QUALITY, method=2)
    return buffer.getvalue()


def _pixels(plane: Plane) -> npt.NDArray[np.uint8]:
    height_mm, width_mm = plane.size_mm
    width = max(8, round(HEIGHT * width_mm / height_mm))
    gray = Image.fromarray(plane.image).resize((width, HEIGHT), Image.Resampling.BILINEAR)
    color = np.repeat(np.asarray(gray)[..., None], 3, axis=2)
    if plane.reference is not None:
        labels = np.asarray(Image.fromarray(plane.reference).resize((width, HEIGHT), Image.Resampling.NEAREST))
        for label in (Label.LIVER, Label.TUMOR):
            color[_edge(labels, label)] = LABEL_COLORS[label]
    return color


def _edge(labels: LabelArray, label: Label) -> npt.NDArray[np.bool_]:
    mask = labels >= label
    edge: npt.NDArray[np.bool_] = mask & ~ndimage.binary_erosion(mask)
    return edge
