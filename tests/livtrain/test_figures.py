"""Pictures of training: sides, colors, axes."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from livprep.labels import LABEL_COLORS, Label
from livtrain.figures import Panel, draw_curves, draw_heat_map, draw_preview, training


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Every figure that is turned into pixels."""
    seen: list[Figure] = []
    plain = FigureCanvasAgg.print_png

    def keep(canvas: FigureCanvasAgg, *args: object, **options: object) -> None:
        seen.append(canvas.figure)
        plain(canvas, *args, **options)

    monkeypatch.setattr(FigureCanvasAgg, "print_png", keep)
    return seen


def test_previews_name_the_sides_and_have_a_scale(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, figures: list[Figure]
) -> None:
    panels: list[Panel] = []
    plain = training.draw_gallery

    def keep(given: list[Panel], title: str) -> bytes:
        panels.extend(given)
        return plain(given, title)

    monkeypatch.setattr(training, "draw_gallery", keep)
    labels = np.zeros((9, 12, 14), dtype=np.uint8)
    labels[2:7, 3:9, 2:6] = Label.LIVER
    draw_preview(tmp_path / "p.png", "a case", labels * 90, labels, labels, (5.0, 2.0, 3.0))
    assert [panel.title for panel in panels] == [f"axial, slice {z} of 9" for z in (3, 4, 5)]
    assert {panel.letters for panel in panels} == {("R", "L", "A", "P")}
    assert {panel.spacing_mm for panel in panels} == {(2.0, 3.0)}
    (figure,) = figures
    for axes in figure.axes:
        assert {text.get_text() for text in axes.texts} == {"R", "L", "A", "P", "5 cm"}
    assert figure.get_suptitle() == "a case"
    Image.open(io.BytesIO((tmp_path / "p.png").read_bytes())).verify()


def test_dice_has_the_colors_of_the_labels_and_the_whole_axis(tmp_path: Path, figures: list[Figure]) -> None:
    points = [(12.0, 0.5)]
    draw_curves(
        tmp_path / "d.png", "t", "Dice", dict.fromkeys(("val_dice_liver", "val_dice_tumor", "val_dice"), points)
    )
    (axes,) = figures[0].axes
    liver, tumor, mean = (line.get_color() for line in axes.get_lines())
    assert [liver, tumor] == ["#{:02x}{:02x}{:02x}".format(*LABEL_COLORS[each]) for each in (Label.LIVER, Label.TUMOR)]
    assert mean not in (liver, tumor)
    assert axes.get_xlim()[0] == 0
    assert axes.get_ylim() == (-0.02, 1.02)


def test_the_map_of_a_search_has_the_axes_of_the_suggestion(tmp_path: Path, figures: list[Figure]) -> None:
    dice = {(wl, ww): wl / 100 for wl in (30.0, 40.0) for ww in (200.0, 220.0, 240.0)}
    draw_heat_map(tmp_path / "h.png", "t", dice, (40.0, 220.0), ((30.0, 50.0), (200.0, 240.0)))
    axes = figures[0].axes[0]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("width WW, HU", "level WL, HU")
    assert [text.get_text() for text in axes.get_xticklabels()] == ["200", "220", "240"]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["30", "40"]
    best = axes.patches[0]
    assert (best.get_x(), best.get_y()) == (0.5, 0.5)  # the second width, the second level
