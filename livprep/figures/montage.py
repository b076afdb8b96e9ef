"""A case as a picture: axial slices through the liver, and a coronal and a sagittal one, in millimeters."""

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
from matplotlib.gridspec import SubplotSpec
from matplotlib.lines import Line2D

from livprep.labels import LABEL_COLORS, Label, LabelArray

BAR_MM = 50.0
COLUMNS = 5
_DPI, _WIDTH, _SIDE = 110, 15.0, 0.36
"""Pixels an inch, inches of the whole picture, and the side column's share of the width of the axial grid."""
_PALE, _INK, _GROUND = "#f2f2f2", "#e8e8e8", "#000000"
_SOLID, _DASHED = "solid", (0.0, (2.5, 1.4))


@dataclass(frozen=True, eq=False)
class Plane:
    """One slice of a scan as it is shown: rows from top to bottom, columns from left to right.

    Parameters
    ----------
    title
        Where it lies.
    image
        Gray values `(rows, columns)` uint8.
    reference, prediction
        Labels of the same shape; None where there are none.
    spacing_mm
        Of rows and columns.
    letters
        Patient directions at the left, right, top and bottom edge, e.g. `("R", "L", "A", "P")`.
    """

    title: str
    image: npt.NDArray[np.uint8]
    reference: LabelArray | None
    prediction: LabelArray | None
    spacing_mm: tuple[float, float]
    letters: tuple[str, str, str, str]

    @property
    def size_mm(self) -> tuple[float, float]:
        """Height and width."""
        rows, columns = self.image.shape
        return rows * self.spacing_mm[0], columns * self.spacing_mm[1]


def draw_montage(title: str, note: str, axial: Sequence[Plane], side: Sequence[Plane]) -> bytes:
    """Draw a grid of axial planes with the side planes at its right, as PNG.

    All planes of the grid have one shape and spacing. Every plane keeps its aspect ratio in mm.
    """
    rows = -(-len(axial) // COLUMNS)
    height_mm, width_mm = axial[0].size_mm
    grid_width = _WIDTH / (1 + _SIDE)
    cell = grid_width / COLUMNS
    grid_height = max(rows * cell * height_mm / width_mm, 0.62 * grid_width)
    figure = Figure(figsize=(_WIDTH, grid_height + 0.95), dpi=_DPI, facecolor=_GROUND)
    top, bottom = 1 - 0.5 / (grid_height + 0.95), 0.42 / (grid_height + 0.95)
    outer = figure.add_gridspec(
        1, 2, width_ratios=(1, _SIDE), left=0.004, right=0.996, top=top, bottom=bottom, wspace=0.012
    )
    grid = outer[0].subgridspec(rows, COLUMNS, wspace=0.015, hspace=0.015)
    for k, plane in enumerate(axial):
        _draw(figure, grid[k // COLUMNS, k % COLUMNS], plane, bar=k % COLUMNS == 0 and k // COLUMNS == rows - 1)
    column = outer[1].subgridspec(len(side), 1, hspace=0.03)
    for k, plane in enumerate(side):
        _draw(figure, column[k, 0], plane, bar=True)
    figure.text(0.006, 1 - 0.25 / (grid_height + 0.95), title, color=_INK, fontsize=14, va="center", weight="bold")
    figure.text(0.994, 1 - 0.25 / (grid_height + 0.95), note, color=_INK, fontsize=11, va="center", ha="right")
    handles = _legend([*axial, *side])
    if handles:
        figure.legend(
            handles=handles, loc="lower center", ncols=4, frameon=False, fontsize=10, labelcolor=_INK, handlelength=3
        )
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer, metadata={"Software": None})
    return buffer.getvalue()


def color_of(label: Label) -> str:
    """The label's color as `#rrggbb`."""
    return "#{:02x}{:02x}{:02x}".format(*LABEL_COLORS[label])


def _legend(planes: Sequence[Plane]) -> list[Line2D]:
    handles = []
    for who, style, shown in (
        ("reference", _SOLID, [plane.reference for plane in planes]),
        ("predicted", _DASHED, [plane.prediction for plane in planes]),
    ):
        for label in (Label.LIVER, Label.TUMOR):
            if any(labels is not None and bool((labels >= label).any()) for labels in shown):
                name = f"{who} {label.name.lower()}"
                handles.append(Line2D([], [], color=color_of(label), linestyle=style, linewidth=2, label=name))
    return handles


def _draw(figure: Figure, place: SubplotSpec, plane: Plane, *, bar: bool) -> None:
    axes = figure.add_subplot(place)
    rows_mm, columns_mm = plane.spacing_mm
    height_mm, width_mm = plane.size_mm
    axes.imshow(
        plane.image, cmap="gray", vmin=0, vmax=255, extent=(0, width_mm, height_mm, 0), interpolation="bilinear"
    )
    x_mm = (np.arange(plane.image.shape[1]) + 0.5) * columns_mm
    y_mm = (np.arange(plane.image.shape[0]) + 0.5) * rows_mm
    for labels, style in ((plane.reference, _SOLID), (plane.prediction, _DASHED)):
        for label in (Label.LIVER, Label.TUMOR):
            mask = None if labels is None else labels >= label
            if mask is not None and min(mask.shape) > 1 and mask.any() and not mask.all():
                drawn = axes.contour(
                    x_mm, y_mm, mask, levels=[0.5], colors=[color_of(label)], linestyles=[style], linewidths=1.3
                )
                drawn.set_path_effects([patheffects.withStroke(linewidth=2.2, foreground="black", alpha=0.55)])
    axes.set_xlim(0, width_mm)
    axes.set_ylim(height_mm, 0)
    axes.set_axis_off()
    for letter, x, y in zip(plane.letters, (0.03, 0.97, 0.5, 0.5), (0.5, 0.5, 0.95, 0.05), strict=True):
        _write(axes, x, y, letter, 9)
    _write(axes, 0.03, 0.95, plane.title, 8, "left")
    if bar:
        _scale_bar(axes, width_mm)


def _scale_bar(axes: Axes, width_mm: float) -> None:
    start, height = 0.05, 0.05
    end = start + BAR_MM / width_mm
    axes.plot(
        [start, end], [height, height], color=_PALE, linewidth=3, solid_capstyle="butt", transform=axes.transAxes,
        path_effects=[patheffects.withStroke(linewidth=5, foreground="black")],
    )  # fmt: skip
    _write(axes, (start + end) / 2, height + 0.05, f"{BAR_MM / 10:g} cm", 8)


def _write(axes: Axes, x: float, y: float, text: str, size: float, align: str = "center") -> None:
    axes.text(
        x, y, text, color=_PALE, fontsize=size, ha=align, va="center", transform=axes.transAxes,
        path_effects=[patheffects.withStroke(linewidth=2.2, foreground="black")],
    )  # fmt: skip
