"""Training from an object storage sees what training from a disk sees."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from s3_endpoint import endpoint, prefix

from livcli.livtrain_fit import fit
from livprep.cohort import IngestRequest, plan_ingest, plan_windows, run_ingest, run_windows
from livprep.splits import make_split
from livprep.store import open_store
from livprep.windows import Window
from livtrain.checkpoint import load_checkpoint
from livtrain.loader import PatchLoader

TINY = ("--set", "patch_zyx=[8,16,16]", "--set", "width=2", "--set", "overlap=0", "--set", "train_dice_cases=1")


@pytest.fixture
def twins(phantom_lits: Path, prefix: Path, tmp_path: Path) -> tuple[Path, Path]:
    """The same ingest, window and split on objects and on disk."""
    for path in (prefix, tmp_path / "local"):
        list(run_ingest(plan_ingest(IngestRequest((phantom_lits,), path, workers=1))))
        store = open_store(path)
        list(run_windows(store, plan_windows(store, [Window(40, 220)]), workers=1))
        open_store(path).write_split(make_split({name: case.patient for name, case in store.items()}, val_fraction=0.3))
    return prefix, tmp_path / "local"


@pytest.mark.parametrize("tier", ["ram", "disk"])
def test_batches_are_the_same_bit_for_bit(twins: tuple[Path, Path], tier: str) -> None:
    loaders = [PatchLoader(open_store(path), (8, 16, 16), 2, seed=3, stop=40, tier=tier, workers=2) for path in twins]
    with loaders[0] as remote, loaders[1] as local:
        batches = list(zip(remote, local, strict=True))
    assert len(batches) == 20
    for one, other in batches:
        assert torch.equal(one.image_BCZYX, other.image_BCZYX)
        assert torch.equal(one.labels_BZYX, other.labels_BZYX)


def test_fit_ends_with_the_same_parameters(twins: tuple[Path, Path], tmp_path: Path) -> None:
    states = []
    for k, path in enumerate(twins):
        run = tmp_path / f"run-{k}"
        words = [*TINY, "--device", "cpu", "--steps", "4", "--store", str(path), "--run", str(run), "-q"]
        result = CliRunner().invoke(fit, words)
        assert result.exit_code == 0, result.output
        states.append(load_checkpoint(run, prefer="last").network_state)
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
