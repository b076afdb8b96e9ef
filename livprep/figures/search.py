"""The window search as heat maps over level and width."""

from __future__ import annotations

import io

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from livprep.suggestion import LESION_OPTIMUM, LEVELS_HU, LIVER_OPTIMUM, WIDTHS_HU, Search

Optimum = tuple[tuple[float, float], tuple[float, float]]


def draw_window_search(found: Search) -> bytes:
    """Draw what windows keep of liver and tumor, and how far they part them, as PNG.

    The published optimum is framed: Unet_Window's stage 1 over the liver, its stage 2 over the tumor and the AUC. A
    cross marks the highest AUC of the grid.
    """
    maps = (
        ("liver kept (share of voxels unsaturated)", found.liver_kept, "cividis", (0.0, 1.0), LIVER_OPTIMUM),
        ("tumor kept (share of voxels unsaturated)", found.tumor_kept, "cividis", (0.0, 1.0), LESION_OPTIMUM),
        ("tumor against liver (AUC)", found.auc, "viridis", (0.5, None), LESION_OPTIMUM),
    )
    figure = Figure(figsize=(16, 4.9), dpi=110, layout="constrained")
    cases = f"{found.cases} case" + ("" if found.cases == 1 else "s")
    figure.suptitle(f"Windows over level and width: mean of {cases}; framed: the published optimum", fontsize=12)
    for k, (title, values, colors, limits, optimum) in enumerate(maps):
        axes = figure.add_subplot(1, 3, k + 1)
        _draw(figure, axes, title, values, colors, limits, optimum)
        if k == 2 and np.isfinite(values).any():
            level, width = np.unravel_index(int(np.nanargmax(values)), values.shape)
            axes.plot(WIDTHS_HU[width], LEVELS_HU[level], "x", color="white", markersize=10, markeredgewidth=2.2)
            axes.set_xlabel(f"width WW, HU   (x: AUC {np.nanmax(values):.3f})")
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer, metadata={"Software": None})
    return buffer.getvalue()


def _draw(
    figure: Figure,
    axes: Axes,
    title: str,
    values: npt.NDArray[np.float64],
    colors: str,
    limits: tuple[float, float | None],
    optimum: Optimum,
) -> None:
    half_x, half_y = (WIDTHS_HU[1] - WIDTHS_HU[0]) / 2, (LEVELS_HU[1] - LEVELS_HU[0]) / 2
    extent = (WIDTHS_HU[0] - half_x, WIDTHS_HU[-1] + half_x, LEVELS_HU[0] - half_y, LEVELS_HU[-1] + half_y)
    axes.set_title(title, fontsize=11)
    axes.set_xlabel("width WW, HU")
    axes.set_ylabel("level WL, HU")
    if not np.isfinite(values).any():
        axes.text(0.5, 0.5, "no such voxels", ha="center", va="center", transform=axes.transAxes)
        axes.set_xlim(extent[:2])
        axes.set_ylim(extent[2:])
        return
    image = axes.imshow(
        values, origin="lower", extent=extent, aspect="auto", cmap=colors, vmin=limits[0], vmax=limits[1]
    )
    figure.colorbar(image, ax=axes, shrink=0.9)
    steps = [0.5, 0.9, 0.99] if limits[1] is not None else 5
    if float(np.nanmax(values)) > float(np.nanmin(values)):
        x, y = np.array(WIDTHS_HU), np.array(LEVELS_HU)
        lines = axes.contour(x, y, values, levels=steps, colors="black", linewidths=0.7, alpha=0.7)
        axes.clabel(lines, fontsize=7)
    (low_y, high_y), (low_x, high_x) = optimum
    for color, width in (("black", 3.6), ("#e69f00", 2.0)):
        corner = (low_x, low_y)
        axes.add_patch(Rectangle(corner, high_x - low_x, high_y - low_y, fill=False, edgecolor=color, linewidth=width))
