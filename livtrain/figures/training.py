"""Pictures of a run: curves and previews."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from livprep.labels import LABEL_COLORS, Label, LabelArray

Series = Mapping[str, Sequence[tuple[float, float]]]
_REFERENCE, _PREDICTED = "solid", "dashed"
_SMOOTHING = 0.9


def draw_curves(path: Path, title: str, ylabel: str, series: Series, *, smooth: bool = False) -> None:
    """Draw curves over optimizer steps as PNG.

    Parameters
    ----------
    path
        PNG, replaced whole.
    series
        Name to (step, value) points in order.
    smooth
        Draw the points pale and their running mean over them.
    """
    figure = Figure(figsize=(8, 4.5), dpi=100, layout="constrained")
    axes = figure.add_subplot()
    for position, (name, points) in enumerate(series.items()):
        if not points:
            continue
        steps, values = np.array(points, dtype=np.float64).T
        color = f"C{position}"
        axes.plot(
            steps,
            values,
            color=color,
            alpha=0.3 if smooth else 1.0,
            label=None if smooth else name,
            marker="" if smooth else ".",
        )
        if smooth:
            axes.plot(steps, _running_mean(values), color=color, label=name)
    axes.set(title=title, xlabel="optimizer step", ylabel=ylabel)
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
        axes.legend()
    _save(figure, path)


def draw_preview(
    path: Path,
    title: str,
    image_ZYX: npt.NDArray[np.uint8],
    reference_ZYX: LabelArray,
    predicted_ZYX: LabelArray,
    spacing_mm: tuple[float, float, float],
) -> None:
    """Draw three axial slices with contours as PNG: reference solid, prediction dashed.

    Parameters
    ----------
    path
        PNG, replaced whole.
    image_ZYX
        One windowed channel.
    reference_ZYX, predicted_ZYX
        Labels of `Label`; the liver contour encloses the tumors.
    spacing_mm
        Voxel distances zyx in mm.
    """
    figure = Figure(figsize=(12, 4.4), dpi=80, layout="constrained")
    for position, z in enumerate(_slices(reference_ZYX)):
        axes = figure.add_subplot(1, 3, position + 1)
        axes.imshow(image_ZYX[z], cmap="gray", vmin=0, vmax=255, aspect=spacing_mm[1] / spacing_mm[2])
        for labels, style in ((reference_ZYX[z], _REFERENCE), (predicted_ZYX[z], _PREDICTED)):
            for label in (Label.LIVER, Label.TUMOR):
                mask = labels >= label
                if mask.any() and not mask.all():
                    color = "#{:02x}{:02x}{:02x}".format(*LABEL_COLORS[label])
                    axes.contour(mask, levels=[0.5], colors=[color], linestyles=style, linewidths=1.2)
        axes.set(title=f"slice {z}", xticks=[], yticks=[])
    figure.suptitle(f"{title} (solid: reference, dashed: prediction)")
    _save(figure, path)


def _slices(labels_ZYX: LabelArray) -> list[int]:
    """A quarter, half and three quarters up the labelled slices; of the volume where nothing is labelled."""
    found = np.flatnonzero((labels_ZYX > 0).any(axis=(1, 2)))
    low, high = (int(found[0]), int(found[-1])) if found.size else (0, labels_ZYX.shape[0] - 1)
    return [low + (high - low) * quarter // 4 for quarter in (1, 2, 3)]


def _running_mean(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Exponential mean without the bias of its start (Kingma and Ba 2015, section 3)."""
    mean, out = 0.0, np.empty_like(values)
    for k, value in enumerate(values):
        mean = _SMOOTHING * mean + (1 - _SMOOTHING) * value
        out[k] = mean / (1 - _SMOOTHING ** (k + 1))
    return out


def _save(figure: Figure, path: Path) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    FigureCanvasAgg(figure).print_png(temporary)
    temporary.replace(path)
