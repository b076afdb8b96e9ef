"""Draw the phantom pictures of the window and looking guides into docs/pictures.

    python docs/draw_pictures.py [FOLDER] [--size 160] [--cases 3]

Phantoms only: no picture of a real patient belongs into the project. `view.png` is a screenshot of `livprep view`
(`LIVPREP_SCREENSHOT=docs/pictures/view.png pytest tests/browser`).
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
from livprep.channels import HIDAJAT_WEIGHTS, Adaptive, Clahe, Equalized, WeightedMean
from livprep.cohort import IngestRequest, plan_ingest, run_ingest
from livprep.figures import draw_window_search
from livprep.preview import preview
from livprep.shown import load_shown
from livprep.store import CaseStore, open_store
from livprep.suggestion import search, tally_cohort
from livprep.synthesis import write_phantoms


def main() -> None:
    """Write the pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=Path(__file__).parent / "pictures")
    parser.add_argument("--size", type=int, default=160)
    parser.add_argument("--cases", type=int, default=3)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        write_phantoms(Path(scratch) / "data", "ircadb", cases=options.cases, seed=3, size=options.size)
        path = Path(scratch) / "liver.zarr"
        list(run_ingest(plan_ingest(IngestRequest((Path(scratch) / "data",), path, workers=1))))
        store = open_store(path)
        case = store["ircadb-01"]
        window = load_catalog().windows.presets["liver"]
        (options.folder / "preview.png").write_bytes(preview(load_shown(case, window)))
        (options.folder / "window-search.png").write_bytes(draw_window_search(search(tally_cohort(store))))
        draw_channels(case, options.folder / "window-channels.png")


def draw_channels(case: CaseStore, path: Path) -> None:
    """One slice in one channel of each kind."""
    bank = load_catalog().windows
    linear = tuple(bank.default_bank())
    channels = [*linear, WeightedMean.of(linear, HIDAJAT_WEIGHTS), Equalized.make(), Adaptive.make()]
    channels.append(Clahe.after(bank.presets["liver"]))
    hu, labels = case.read_hu(), case.read_labels()
    z = int(np.argmax((labels > 0).sum(axis=(1, 2))))
    aspect = case.geometry.spacing_mm[1] / case.geometry.spacing_mm[2]
    figure, axes = plt.subplots(1, len(channels), figsize=(2.3 * len(channels), 2.5), dpi=100, layout="constrained")
    for axis, channel in zip(axes, channels, strict=True):
        axis.imshow(channel.apply(hu)[z], cmap="gray", vmin=0, vmax=255, aspect=aspect)
        axis.set_title(channel.name, fontsize=9)
        axis.axis("off")
    figure.savefig(path)


if __name__ == "__main__":
    main()
