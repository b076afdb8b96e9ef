"""Pictures of a run: curves and previews."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from livprep.labels import LabelArray
from livtrain.figures.gallery import Panel, draw_gallery
from livtrain.figures.scores import LIVER_COLOR, TUMOR_COLOR

Series = Mapping[str, Sequence[tuple[float, float]]]
_SMOOTHING = 0.9
_PLAIN = "#333333"


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
    for name, points in series.items():
        if not points:
            continue
        steps, values = np.array(points, dtype=np.float64).T
        color = LIVER_COLOR if "liver" in name else TUMOR_COLOR if "tumor" in name else _PLAIN
        axes.plot(
            steps,
            values,
            color=color,
            alpha=0.3 if smooth else 1.0,
            label=None if smooth else name,
            linestyle="dashed" if name == "val_dice" else "solid",
            marker="" if smooth else ".",
        )
        if smooth:
            axes.plot(steps, _running_mean(values), color=color, label=name)
    axes.set(title=title, xlabel="optimizer step", ylabel=ylabel)
    axes.set_xlim(left=0)
    if ylabel == "Dice":
        axes.set_ylim(-0.02, 1.02)
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
    """Draw three axial slices with contours as PNG, in radiological view: reference solid, prediction dashed.

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
    panels = [
        Panel(
            title=f"axial, slice {z} of {len(image_ZYX)}",
            image=image_ZYX[z],
            reference=reference_ZYX[z],
            prediction=predicted_ZYX[z],
            spacing_mm=spacing_mm[1:],
            letters=("R", "L", "A", "P"),  # the store's grid is LPS: columns grow to the left, rows to the back
        )
        for z in _slices(reference_ZYX)
    ]
    _replace(path, draw_gallery(panels, title))


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
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    _replace(path, buffer.getvalue())


def _replace(path: Path, png: bytes) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_bytes(png)
    temporary.replace(path)
