"""Pictures of cases and cohorts. The only part of livprep that imports matplotlib and Pillow.

Figures are drawn on an Agg or SVG canvas without pyplot, so no display, no global state and no open windows are
involved. Liver is blue and tumor orange everywhere (`livprep.labels.LABEL_COLORS`, safe for color-blind readers);
references are solid lines and predictions dashed ones, so that no color has to tell them apart.
"""

from livprep.figures.charts import (
    draw_histograms,
    draw_lesions,
    draw_spacing,
    draw_volumes,
    plain_axes,
    svg,
)
from livprep.figures.montage import Plane, draw_montage
from livprep.figures.search import draw_window_search
from livprep.figures.thumbnail import draw_thumbnail

__all__ = [
    "Plane",
    "draw_histograms",
    "draw_lesions",
    "draw_montage",
    "draw_spacing",
    "draw_thumbnail",
    "draw_volumes",
    "draw_window_search",
    "plain_axes",
    "svg",
]
