"""Charts of scores, as SVG: boxes with points, lesion detection by size, Bland-Altman of tumor burden."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from livprep.figures import plain_axes, svg
from livprep.labels import LABEL_COLORS, Label
from livtrain.metrics import Lesion, SizeClass

FloatArray = npt.NDArray[np.float64]

LIVER_COLOR, TUMOR_COLOR = ("#{:02x}{:02x}{:02x}".format(*LABEL_COLORS[label]) for label in (Label.LIVER, Label.TUMOR))
"""Of `livprep.labels`, safe for color-blind readers."""
_GRAY, _DARK = "#8c8c8c", "#333333"
_JITTER = 0.17


def draw_boxes(panels: Mapping[str, Mapping[str, Sequence[float]]], lower_is_better: Sequence[str] = ()) -> bytes:
    """Draw box plots with every point.

    Parameters
    ----------
    panels
        Title -> `liver` and `tumor` -> one value for each case; NaN is left out, and the number of points is written
        below. Boxes are quartiles, whiskers reach the furthest point within 1.5 times the box.
    lower_is_better
        Titles of panels whose values are distances, which get an axis from 0 instead of 0...1.
    """
    figure = Figure(figsize=(2.6 * len(panels), 3.3), layout="constrained")
    for position, (title, groups) in enumerate(panels.items()):
        axes = figure.add_subplot(1, len(panels), position + 1)
        names = []
        for k, (name, values) in enumerate(groups.items()):
            known = np.array([value for value in values if not np.isnan(value)], dtype=np.float64)
            names.append(f"{name}\nn = {len(known)}")
            _box(axes, k, known, TUMOR_COLOR if name == "tumor" else LIVER_COLOR)
        axes.set_xticks(range(len(names)), names)
        axes.set_xlim(-0.6, len(names) - 0.4)
        axes.set_title(title, fontsize=10)
        if title in lower_is_better:
            axes.set_ylim(bottom=0)
        else:
            axes.set_ylim(-0.03, 1.03)
        plain_axes(axes)
    return svg(figure)


def _box(axes: Axes, position: int, values: FloatArray, color: str) -> None:
    if not len(values):
        axes.text(
            position, 0.5, "no value", ha="center", va="center", color=_GRAY, transform=axes.get_xaxis_transform()
        )
        return
    style = {"color": color, "linewidth": 1.3}
    axes.boxplot(
        [values], positions=[position], widths=0.5, showfliers=False, medianprops={**style, "linewidth": 2.2},
        boxprops=style, whiskerprops=style, capprops=style,
    )  # fmt: skip
    # Neighbors by value step aside in turn, so that equal points stay visible; no randomness.
    order = np.argsort(np.argsort(values, kind="stable"), kind="stable")
    offsets = np.array([0.0, 1.0, -1.0, 0.5, -0.5])[order % 5] * _JITTER if len(values) > 1 else np.zeros(1)
    axes.plot(position + offsets, values, "o", color=color, markersize=4, alpha=0.65, markeredgewidth=0)


def draw_detection(classes: Sequence[SizeClass], lesions: Sequence[Lesion]) -> bytes:
    """Draw the share of reference lesions that is found in each class of size, and every lesion by its diameter.

    Parameters
    ----------
    classes
        Of `detection_by_size`.
    lesions
        All reference lesions.
    """
    figure = Figure(figsize=(9.5, 3.4), layout="constrained")
    bars, strip = figure.subplots(1, 2, width_ratios=(1.0, 1.25))
    for k, entry in enumerate(classes):
        for offset, share, color in ((-0.2, entry.sensitivity, _GRAY), (0.2, entry.sensitivity_matched, TUMOR_COLOR)):
            if entry.reference:
                bars.bar(k + offset, share, width=0.38, color=color)
                bars.text(k + offset, share + 0.02, f"{share:.2f}", ha="center", fontsize=8)
    bars.set_xticks(range(len(classes)), [f"{entry.name}\nn = {entry.reference}" for entry in classes], fontsize=9)
    bars.set_ylim(0, 1.12)
    bars.set_title("share of reference lesions found (pooled)", fontsize=10)
    bars.bar(0, 0, color=_GRAY, label="any voxel")
    bars.bar(0, 0, color=TUMOR_COLOR, label="IoU > 0.5")
    bars.legend(fontsize=8, frameon=False, ncols=2, loc="upper left", bbox_to_anchor=(0, -0.16))
    rows = {"missed": 0, "touched": 1, "IoU > 0.5": 2}
    for name, row in rows.items():
        own = [lesion for lesion in lesions if row == (2 if lesion.matched else int(lesion.touched))]
        offsets = (np.arange(len(own)) % 5 - 2) * 0.09
        color, fill = (TUMOR_COLOR, TUMOR_COLOR) if name == "IoU > 0.5" else (_DARK, "none" if row == 0 else _GRAY)
        strip.scatter([lesion.diameter_mm for lesion in own], row + offsets, s=26, color=fill, edgecolors=color)
    strip.set_yticks(list(rows.values()), list(rows))
    strip.set_ylim(-0.6, 2.6)
    strip.set_xscale("log")
    diameters = [lesion.diameter_mm for lesion in lesions] or [5.0, 50.0]
    strip.set_xlim(min(*diameters, 5.0) * 0.8, max(*diameters, 50.0) * 1.25)
    ticks = [value for value in (1, 2, 5, 10, 20, 50, 100, 200) if strip.get_xlim()[0] <= value <= strip.get_xlim()[1]]
    strip.set_xticks(ticks, [str(value) for value in ticks])
    strip.minorticks_off()
    for limit in (10, 20):
        strip.axvline(limit, color=_GRAY, linewidth=0.8, linestyle="dotted")
    strip.set_xlabel("diameter of the sphere of the same volume, mm", fontsize=8)
    strip.set_title("each reference lesion", fontsize=10)
    for axes in (bars, strip):
        plain_axes(axes)
    return svg(figure)


def draw_burden(reference: Sequence[float], prediction: Sequence[float]) -> bytes:
    """Draw Bland and Altman's plot of the tumor burden, in percent of the liver.

    Bias and limits of agreement are the mean of the differences and mean -/+ 1.96 standard deviations (Bland and
    Altman 1986, Lancet 327:307); the limits need three cases.

    Parameters
    ----------
    reference, prediction
        Burden of each case in percent.
    """
    figure = Figure(figsize=(6.2, 3.4), layout="constrained")
    axes = figure.add_subplot()
    a, b = np.array(reference, dtype=np.float64), np.array(prediction, dtype=np.float64)
    differences = b - a
    axes.axhline(0, color=_GRAY, linewidth=0.8)
    axes.plot(
        (a + b) / 2, differences, "o", color=TUMOR_COLOR, markersize=6, markeredgecolor=_DARK, markeredgewidth=0.5
    )
    if len(differences):
        bias = float(differences.mean())
        lines = [(bias, f"bias {bias:+.2f}", "solid")]
        if len(differences) > 2:
            spread = 1.96 * float(differences.std(ddof=1))
            lines += [
                (bias + sign * spread, f"{sign * 1.96:+.2f} SD: {bias + sign * spread:+.2f}", "dashed")
                for sign in (1, -1)
            ]
        for height, text, style in lines:
            axes.axhline(height, color=_DARK, linewidth=1.0, linestyle=style)
            axes.annotate(text, (1.01, height), xycoords=("axes fraction", "data"), fontsize=8, va="center")
    axes.set_xlabel("mean of prediction and reference, % of the liver")
    axes.set_ylabel("prediction − reference, points")
    plain_axes(axes)
    return svg(figure)
