"""Pictures of runs and of scores. The only part of livtrain that imports matplotlib.

Figures are drawn on an Agg or SVG canvas without pyplot, so no display, no global state and no open windows are
involved.
"""

from livtrain.figures.gallery import Panel, draw_gallery
from livtrain.figures.scores import draw_boxes, draw_burden, draw_detection
from livtrain.figures.sweep import draw_heat_map
from livtrain.figures.training import draw_curves, draw_preview

__all__ = [
    "Panel",
    "draw_boxes",
    "draw_burden",
    "draw_curves",
    "draw_detection",
    "draw_gallery",
    "draw_heat_map",
    "draw_preview",
]
