"""The map of a window search."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

Span = tuple[float, float]
_PUBLISHED = "#e69f00"
"""As in the picture of `livprep window --suggest`, with the same axes."""


def draw_heat_map(
    path: Path,
    title: str,
    dice: Mapping[tuple[float, float], float | None],
    chosen: tuple[float, float] | None,
    published: tuple[Span, Span] | None,
) -> None:
    """Draw Dice over width (columns) and level (rows) as PNG, replaced whole.

    Parameters
    ----------
    dice
        (WL, WW) in HU to Dice; None, drawn as a gap, where it is not known.
    chosen
        (WL, WW) of the best on validation, framed in black.
    published
        Levels and widths of a published optimum, framed dashed; it is drawn as far as the grid reaches.
    """
    levels, widths = (sorted({cell[k] for cell in dice}) for k in (0, 1))
    values = np.array([[np.nan if (found := dice.get((wl, ww))) is None else found for ww in widths] for wl in levels])
    figure = Figure(figsize=(2.6 + 0.9 * max(len(widths), 3), 2.2 + 0.6 * max(len(levels), 3)), dpi=100)
    figure.set_layout_engine("constrained")
    axes = figure.add_subplot()
    image = axes.imshow(np.ma.masked_invalid(values), origin="lower", cmap="viridis", aspect="auto")
    figure.colorbar(image, ax=axes, label="Dice")
    low, high = (float(np.nanmin(values)), float(np.nanmax(values))) if np.isfinite(values).any() else (0.0, 0.0)
    for (row, column), value in np.ndenumerate(values):
        # viridis is dark below some two thirds of its range
        color = "gray" if np.isnan(value) else "white" if value < low + 0.6 * (high - low) else "black"
        text = "-" if np.isnan(value) else f"{value:.3f}"
        axes.text(column, row, text, ha="center", va="center", color=color, fontsize=9)
    axes.set_xticks(range(len(widths)), [f"{ww:g}" for ww in widths])
    axes.set_yticks(range(len(levels)), [f"{wl:g}" for wl in levels])
    axes.set_title(title, fontsize=10, wrap=True)
    axes.set(xlabel="width WW, HU", ylabel="level WL, HU")
    if chosen is not None:
        row, column = levels.index(chosen[0]), widths.index(chosen[1])
        axes.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, ec="black", lw=3, label="best here"))
    if published is not None:
        _frame(axes, levels, widths, published)
    if axes.patches:
        figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    temporary = path.with_name(f".{path.name}.tmp")
    FigureCanvasAgg(figure).print_png(temporary)
    temporary.replace(path)


def _frame(axes: Axes, levels: list[float], widths: list[float], published: tuple[Span, Span]) -> None:
    """Frame the cells that lie within the published optimum."""
    rows = [k for k, wl in enumerate(levels) if published[0][0] <= wl <= published[0][1]]
    columns = [k for k, ww in enumerate(widths) if published[1][0] <= ww <= published[1][1]]
    if columns and rows:
        corner = (columns[0] - 0.42, rows[0] - 0.42)
        size = (columns[-1] - columns[0] + 0.84, rows[-1] - rows[0] + 0.84)
        axes.add_patch(
            Rectangle(
                corner, *size, fill=False, ec=_PUBLISHED, lw=2, ls="--", label="published optimum",
                path_effects=[patheffects.withStroke(linewidth=3.6, foreground="black")],
            )
        )  # fmt: skip
