"""Draw docs/pictures/channels.png: a phantom's HU and windowed channels with the contours of liver and tumor.

    python docs/draw_channels.py [OUT.png] [--size 256]

Phantoms only: no picture of a real patient belongs into the project.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from livprep.catalog import load_catalog
from livprep.labels import LABEL_COLORS, Label
from livprep.prepare import Preparation, prepare
from livprep.sources import catalog_beside, discover, read_case
from livprep.synthesis import write_phantoms
from livprep.windows import Window


def main() -> None:
    """Write the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", nargs="?", type=Path, default=Path(__file__).parent / "pictures" / "channels.png")
    parser.add_argument("--size", type=int, default=256)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "data"
        write_phantoms(folder, "ircadb", cases=1, seed=3, size=options.size)
        catalog = load_catalog(catalog_beside([folder]))
        case = discover([folder], catalog).cases[0]
        volume = prepare(read_case(case, catalog).volume, Preparation())
    assert volume.label_map is not None
    labels = volume.label_map.labels
    z = int(np.argmax((labels == Label.TUMOR).sum(axis=(1, 2)) + 0.05 * (labels > 0).sum(axis=(1, 2))))
    hu = volume.image.hu[z]
    panels = [("HU, −1000 to 1000", Window(0, 2000)), ("WL 0 WW 400", Window(0, 400))]
    panels += [("WL 40 WW 220", Window(40, 220)), ("WL 60 WW 140", Window(60, 140))]
    aspect = volume.geometry.spacing_mm[1] / volume.geometry.spacing_mm[2]
    figure, axes = plt.subplots(1, len(panels), figsize=(4 * len(panels), 4.4), dpi=80)
    for axis, (title, window) in zip(axes, panels, strict=True):
        axis.imshow(window.apply(hu), cmap="gray", vmin=0, vmax=255, aspect=aspect)
        for label in (Label.LIVER, Label.TUMOR):
            color = np.array(LABEL_COLORS[label]) / 255
            axis.contour(labels[z] >= label, levels=[0.5], colors=[color], linewidths=1.6)
        axis.set_title(title)
        axis.text(0.02, 0.5, "R", color="w", transform=axis.transAxes, va="center")
        axis.text(0.98, 0.5, "L", color="w", transform=axis.transAxes, va="center", ha="right")
        axis.axis("off")
    figure.tight_layout()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(options.out)


if __name__ == "__main__":
    main()
