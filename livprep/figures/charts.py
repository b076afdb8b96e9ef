"""Charts of a cohort, as SVG."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from livprep.figures.montage import color_of
from livprep.labels import Label
from livprep.windows import Window

FloatArray = npt.NDArray[np.float64]
LIVER, TUMOR, GRAY, DARK = color_of(Label.LIVER), color_of(Label.TUMOR), "#8c8c8c", "#333333"
_MARKERS = "osD^vP"
_SHADES = ("#bbbbbb", "#dddddd")
_HISTOGRAM_HU = (-220, 330)


def draw_spacing(sizes: Mapping[str, Sequence[tuple[float, float, int, int]]]) -> bytes:
    """Draw spacing and size of the scans.

    Parameters
    ----------
    sizes
        Data set -> (in-plane mm, slice distance mm, slices, in-plane voxels along x) of each case.
    """
    figure = Figure(figsize=(9.5, 3.6), layout="constrained")
    spacing, size = figure.subplots(1, 2)
    for k, (name, rows) in enumerate(sizes.items()):
        values = np.array(rows, dtype=np.float64).reshape(-1, 4)
        style = {"s": 30, "marker": _MARKERS[k % len(_MARKERS)], "alpha": 0.7, "linewidths": 0.6, "edgecolors": DARK}
        color = (LIVER, TUMOR, "#009e73", "#cc79a7")[k % 4]
        spacing.scatter(values[:, 0], values[:, 1], color=color, label=f"{name} (n = {len(values)})", **style)
        size.scatter(values[:, 2] * values[:, 1] / 10, values[:, 3] * values[:, 0] / 10, color=color, **style)
    spacing.set_xlabel("in-plane spacing, mm")
    spacing.set_ylabel("slice distance, mm")
    spacing.set_ylim(bottom=0)
    size.set_xlabel("covered length (head to foot), cm")
    size.set_ylabel("field of view, cm")
    for axes, title in ((spacing, "voxel spacing"), (size, "size of the scans")):
        axes.set_title(title, fontsize=10)
        plain_axes(axes)
    figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    return svg(figure)


def draw_histograms(
    hu: npt.NDArray[np.int16], counts: Mapping[str, npt.NDArray[np.int64]], windows: Sequence[Window]
) -> bytes:
    """Draw the HU of each class as densities, with the windows shaded behind them.

    Parameters
    ----------
    hu
        HU of the columns.
    counts
        Class -> voxels of each HU, summed over the cohort.
    windows
        Drawn as bands with their names.
    """
    figure = Figure(figsize=(9.5, 3.9 + 0.16 * len(windows)), layout="constrained")
    axes, bands = figure.subplots(2, 1, sharex=True, height_ratios=(3.4, 0.3 + 0.24 * max(1, len(windows))))
    shown = (hu >= _HISTOGRAM_HU[0]) & (hu <= _HISTOGRAM_HU[1])
    styles = {"background": (GRAY, "dotted"), "liver": (LIVER, "solid"), "tumor": (TUMOR, "solid")}
    for name, values in counts.items():
        total = float(values[shown].sum())
        if total:
            color, line = styles.get(name, (DARK, "dashed"))
            density = np.convolve(values[shown], np.ones(5) / 5, mode="same") / total
            axes.plot(hu[shown], density, color=color, linestyle=line, linewidth=1.8, label=name)
    for k, window in enumerate(windows):
        low, high = max(window.low_hu, _HISTOGRAM_HU[0]), min(window.high_hu, _HISTOGRAM_HU[1])
        axes.axvspan(low, high, color=_SHADES[k % 2], alpha=0.22, linewidth=0)
        bands.barh(k, high - low, left=low, height=0.75, color=_SHADES[k % 2], edgecolor=GRAY, linewidth=0.6)
        bands.text((low + high) / 2, k, str(window), ha="center", va="center", fontsize=7.5)
    axes.set_xlim(*_HISTOGRAM_HU)
    axes.set_ylabel("density, 1/HU")
    axes.set_title("HU of each class, all cases together (5 HU running mean)", fontsize=10)
    if axes.get_lines():
        axes.legend(frameon=False, fontsize=9)
    bands.set_yticks([])
    bands.invert_yaxis()
    bands.set_xlabel("HU")
    bands.set_ylabel("windows", fontsize=9)
    bands.spines[["top", "right", "left"]].set_visible(False)
    plain_axes(axes)
    return svg(figure)


def draw_volumes(liver_ml: Sequence[float], tumor_ml: Sequence[float]) -> bytes:
    """Draw the volumes of liver (with tumor) and tumor of each labelled case, sorted by the liver's."""
    figure = Figure(figsize=(9.5, 3.3), layout="constrained")
    liver, tumor = figure.subplots(1, 2)
    for axes, values, color, title in (
        (liver, liver_ml, LIVER, "liver with tumor, ml"),
        (tumor, [value for value in tumor_ml if value > 0], TUMOR, "tumor, ml (cases that have any)"),
    ):
        ordered = np.sort(np.array(values, dtype=np.float64))
        axes.plot(np.arange(1, len(ordered) + 1), ordered, "o", color=color, markersize=4)
        axes.set_title(f"{title}, n = {len(ordered)}", fontsize=10)
        axes.set_xlabel("cases, by volume")
        if len(ordered):
            median = float(np.median(ordered))
            axes.axhline(median, color=DARK, linewidth=0.9, linestyle="dashed")
            text = f"median {median:.0f}" if median >= 100 else f"median {median:.1f}"
            axes.annotate(text, (0.02, median), xycoords=("axes fraction", "data"), fontsize=8, va="bottom")
        axes.xaxis.get_major_locator().set_params(integer=True)
        if axes is tumor and len(ordered):
            axes.set_yscale("log")
            axes.set_ylim(ordered[0] / 1.5, ordered[-1] * 1.5)
        else:
            axes.set_ylim(0, 1.1 * max(ordered, default=0.0) or 1.0)
        plain_axes(axes)
    return svg(figure)


def draw_lesions(counts: Sequence[int], diameters_mm: Sequence[float]) -> bytes:
    """Draw how many lesions cases have, and the lesions' diameters (of the sphere of the same volume)."""
    figure = Figure(figsize=(9.5, 3.1), layout="constrained")
    number, size = figure.subplots(1, 2)
    most = max(counts, default=0)
    number.hist(counts, bins=np.arange(most + 2) - 0.5, color=TUMOR, edgecolor="white", linewidth=0.6)
    number.set_xlabel("lesions in a case")
    number.set_ylabel("cases")
    number.xaxis.get_major_locator().set_params(integer=True)
    number.yaxis.get_major_locator().set_params(integer=True)
    number.set_title(f"lesion count: {sum(counts)} in {len(counts)} cases", fontsize=10)
    if diameters_mm:
        low, high = min(*diameters_mm, 5.0), max(*diameters_mm, 50.0)
        size.hist(diameters_mm, bins=np.geomspace(low * 0.98, high * 1.02, 24).tolist(), color=TUMOR,
                  edgecolor="white", linewidth=0.6)  # fmt: skip
        size.set_xscale("log")
        ticks = [tick for tick in (1, 2, 5, 10, 20, 50, 100, 200) if low * 0.9 <= tick <= high * 1.1]
        size.set_xticks(ticks, [str(tick) for tick in ticks])
        size.minorticks_off()
        for limit in (10, 20):
            size.axvline(limit, color=DARK, linewidth=0.8, linestyle="dotted")
    size.set_xlabel("diameter of the sphere of the same volume, mm")
    size.set_ylabel("lesions")
    size.set_title("lesion size (6-connected components)", fontsize=10)
    for axes in (number, size):
        plain_axes(axes)
    return svg(figure)


def plain_axes(axes: Axes) -> None:
    """Leave two spines and a light grid behind what is drawn."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.25)
    axes.set_axisbelow(True)


def svg(figure: Figure) -> bytes:
    """The figure as SVG, the same bytes every time."""
    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "livprep"}):
        FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None, "Creator": None})
    return buffer.getvalue()
