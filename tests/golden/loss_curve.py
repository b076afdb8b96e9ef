"""The committed loss curves: `python tests/golden/loss_curve.py` records them, tests repeat them.

Two phantoms, the dilated ResUNet thinned to width 2, 60 steps on one thread: in float64 without augmentation, which
any machine repeats, and in float32 with all of it, which the same kind of processor repeats. A change that moves a
curve changes what training computes; record it again only where that is meant, and say why.
"""

from __future__ import annotations

import json
import platform
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

FILE = Path(__file__).with_name("loss_curve.json")
COURSE = (
    "network=resunet", "width=2", "patch_zyx=[16,32,32]", "batch=2", "steps=60", "dropout=0", "log_every=10",
    "validate_every=0", "validation_cases=1", "train_dice_cases=0", "checkpoint_s=1e9", "loader_threads=1", "seed=7",
    "windows=hu:40/220,60/140", "overlap=0",
)  # fmt: skip
KINDS: dict[str, tuple[str, ...]] = {
    "float64": ("amp=fp64", "augment={preset: none}", "channels_last=false"),
    "float32": ("amp=none", "augment={preset: nnunet}"),
}
SIZE, SEED = 40, 11


def cpu() -> str:
    """What decides how float32 sums are ordered: the vector instructions that torch uses."""
    return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"


def make_store(folder: Path) -> Path:
    """A store of two phantoms."""
    from livprep.cohort import IngestRequest, plan_ingest, run_ingest
    from livprep.synthesis import write_lits

    write_lits(folder / "in", [48, 68], seed=SEED, size=SIZE)
    list(run_ingest(plan_ingest(IngestRequest((folder / "in",), folder / "liver.zarr", workers=1))))
    return folder / "liver.zarr"


def compute(store: Path, kind: str, folder: Path) -> list[float]:
    """The 60 losses of a kind."""
    from livprep.store import open_store
    from livtrain.config import resolve
    from livtrain.trainer import fit

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        settings = resolve(preset="fast-cpu", assignments=[*COURSE, *KINDS[kind]], options={"device": "cpu"})
        fit(open_store(store), settings, folder)
    finally:
        torch.set_num_threads(threads)
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [record["loss"] for record in records if "loss" in record]


def main() -> None:
    """Record both curves."""
    with tempfile.TemporaryDirectory() as temporary:
        store = make_store(Path(temporary))
        found: dict[str, Any] = {kind: compute(store, kind, Path(temporary) / kind) for kind in KINDS}
    FILE.write_text(json.dumps({"cpu": cpu(), "torch": torch.__version__.split("+")[0], **found}, indent=1) + "\n")
    print({kind: (losses[0], losses[-1]) for kind, losses in found.items()}, file=sys.stderr)


if __name__ == "__main__":
    main()
