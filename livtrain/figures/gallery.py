"""Pictures of single cases: contours of reference and prediction over a windowed slice, in radiological view."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from livprep.labels import LABEL_COLORS, Label, LabelArray

BAR_MM = 50.0
MARGIN_MM = 25.0
LEAST_MM = 160.0
"""Shown around the labels, and at least in all."""
REFERENCE_STYLE, PREDICTED_STYLE = "solid", (0.0, (3.0, 1.6))
View = tuple[float, float, float, float]
"""Lowest and highest row, lowest and highest column, in mm."""
_HEIGHT = 4.1
_PALE, _OUTLINE = "#f0f0f0", "black"


@dataclass(frozen=True, eq=False)
class Panel:
    """One slice.

    Parameters
    ----------
    title
        What it shows.
    image
        Windowed gray values `(rows, columns)` uint8; None where only labels are known.
    reference, prediction
        Labels of `Label`, of the same shape.
    spacing_mm
        Of rows and columns.
    letters
        Patient directions at the left, right, top and bottom edge, e.g. `("R", "L", "A", "P")`.
    """

    title: str
    image: npt.NDArray[np.uint8] | None
    reference: LabelArray
    prediction: LabelArray
    spacing_mm: tuple[float, float]
    letters: tuple[str, str, str, str]


def draw_gallery(panels: Sequence[Panel], title: str = "") -> bytes:
    """Draw slices side by side as PNG, each with contours, letters, a scale bar of 5 cm and a legend below."""
    views = [_view(panel) for panel in panels]
    shapes = [(high_x - low_x) / (high_y - low_y) for low_y, high_y, low_x, high_x in views]
    figure = Figure(figsize=(_HEIGHT * sum(shapes) + 0.3, _HEIGHT + 0.85), dpi=110, layout="constrained")
    grid = figure.add_gridspec(1, len(panels), width_ratios=shapes)  # so that all are of one height
    for position, (panel, view) in enumerate(zip(panels, views, strict=True)):
        _draw(figure.add_subplot(grid[position]), panel, view)
    handles = [
        Line2D([], [], color=_color(label), linestyle=style, linewidth=1.8, label=f"{who} {label.name.lower()}")
        for who, style in (("reference", REFERENCE_STYLE), ("predicted", PREDICTED_STYLE))
        for label in (Label.LIVER, Label.TUMOR)
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False, fontsize=9, handlelength=3)
    if title:
        figure.suptitle(title, fontsize=11)
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer, metadata={"Software": None})
    return buffer.getvalue()


def _draw(axes: Axes, panel: Panel, view: View) -> None:
    rows_mm, columns_mm = panel.spacing_mm
    height, width = panel.reference.shape
    extent = (-columns_mm / 2, (width - 0.5) * columns_mm, (height - 0.5) * rows_mm, -rows_mm / 2)
    image = np.zeros(panel.reference.shape, dtype=np.uint8) if panel.image is None else panel.image
    axes.imshow(image, cmap="gray", vmin=0, vmax=255, extent=extent, interpolation="bilinear")
    x_mm, y_mm = np.arange(width) * columns_mm, np.arange(height) * rows_mm
    for labels, style in ((panel.reference, REFERENCE_STYLE), (panel.prediction, PREDICTED_STYLE)):
        for label in (Label.LIVER, Label.TUMOR):
            mask = labels >= label
            if min(mask.shape) > 1 and mask.any() and not mask.all():
                drawn = axes.contour(
                    x_mm, y_mm, mask, levels=[0.5], colors=[_color(label)], linestyles=[style], linewidths=1.5
                )
                drawn.set_path_effects([patheffects.withStroke(linewidth=2.6, foreground=_OUTLINE, alpha=0.6)])
    low_y, high_y, low_x, high_x = view
    axes.set_xlim(low_x, high_x)
    axes.set_ylim(high_y, low_y)
    axes.set_facecolor("black")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_title(panel.title, fontsize=9)
    for letter, place in zip(panel.letters, ((0.03, 0.5), (0.97, 0.5), (0.5, 0.965), (0.5, 0.035)), strict=True):
        _write(axes, *place, letter)
    _scale_bar(axes, high_x - low_x)


def _view(panel: Panel) -> View:
    """Rows and columns in mm to show: the labels with a margin, inside the image where it is large enough."""
    labelled = np.argwhere((panel.reference > 0) | (panel.prediction > 0))
    edges: list[float] = []
    for axis in (0, 1):
        size_mm = panel.reference.shape[axis] * panel.spacing_mm[axis]
        low, high = 0.0, size_mm
        if len(labelled):
            low = float(labelled[:, axis].min()) * panel.spacing_mm[axis] - MARGIN_MM
            high = float(labelled[:, axis].max()) * panel.spacing_mm[axis] + MARGIN_MM
        widen = max(0.0, LEAST_MM - (high - low)) / 2
        low, high = low - widen, high + widen
        if high - low < size_mm:
            shift = max(0.0, -low) - max(0.0, high - size_mm)
            low, high = low + shift, high + shift
        edges += [low, high]
    return edges[0], edges[1], edges[2], edges[3]


def _scale_bar(axes: Axes, width_mm: float) -> None:
    start, height = 0.05, 0.075
    axes.plot(
        [start, start + BAR_MM / width_mm], [height, height], color=_PALE, linewidth=3, solid_capstyle="butt",
        transform=axes.transAxes, path_effects=[patheffects.withStroke(linewidth=5, foreground=_OUTLINE)],
    )  # fmt: skip
    _write(axes, start + BAR_MM / width_mm / 2, height + 0.035, f"{BAR_MM / 10:g} cm", size=8)


def _write(axes: Axes, x: float, y: float, text: str, size: float = 11) -> None:
    axes.text(
        x, y, text, color=_PALE, fontsize=size, ha="center", va="center", transform=axes.transAxes,
        path_effects=[patheffects.withStroke(linewidth=2.5, foreground=_OUTLINE)],
    )  # fmt: skip


def _color(label: Label) -> str:
    return "#{:02x}{:02x}{:02x}".format(*LABEL_COLORS[label])
