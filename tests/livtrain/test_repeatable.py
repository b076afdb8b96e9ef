"""A run repeats: the committed loss curves, and a run that is killed and goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest
import torch
from fake_store import fake_store
from kill_worker import settings

from livtrain.checkpoint import load_checkpoint
from livtrain.config import settings_from
from livtrain.trainer import fit

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "golden"))

import loss_curve  # noqa: E402 - a script beside the file that it records

STEPS, POINTS = 40, (1, 5, 9, 14, 15, 17, 22, 30, 31, 39)


@pytest.fixture(scope="module")
def curve_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The two phantoms of the curves."""
    return loss_curve.make_store(tmp_path_factory.mktemp("curve"))


@pytest.mark.parametrize("kind", loss_curve.KINDS)
def test_the_committed_loss_curve_is_repeated(kind: str, curve_store: Path, tmp_path: Path) -> None:
    recorded = json.loads(loss_curve.FILE.read_text())
    if kind == "float32" and recorded["cpu"] != loss_curve.cpu():
        pytest.skip(f"recorded on {recorded['cpu']}, this is {loss_curve.cpu()}: float32 sums in another order")
    losses = loss_curve.compute(curve_store, kind, tmp_path / kind)
    assert len(losses) == 60
    assert losses == pytest.approx(recorded[kind], abs=1e-6)
    assert losses[-1] < 0.7 * losses[0]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], Path]]:
    """An undisturbed run of 40 steps, made when it is first asked for."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)

    @cache
    def make() -> Path:
        folder = tmp_path_factory.mktemp("whole") / "run"
        fit(fake_store(), settings(1, STEPS), folder)
        return folder

    yield make
    torch.set_num_threads(threads)


@pytest.mark.parametrize("stage", ["liver", "tumor"])
def test_windows_from_hu_train_as_stored_channels_do(stage: str, tmp_path: Path) -> None:
    """Bit for bit: the bytes of a channel do not depend on where it is made."""
    weights = []
    for source in ("packed", "stored"):
        course = settings(1, 3).model_dump() | {"stage": stage, "augment": {"preset": "none"}, "window_source": source}
        fit(fake_store(), settings_from(course), tmp_path / source)
        weights.append(load_checkpoint(tmp_path / source, prefer="last").network_state)
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


def _worker(folder: Path, threads: int, kill_at: int) -> int:
    paths = os.pathsep.join([str(HERE), str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"}
    command = [sys.executable, HERE / "kill_worker.py", folder, threads, kill_at, STEPS]
    return subprocess.run(list(map(str, command)), env=environment, check=False, timeout=240).returncode


def _same(folder: Path, expected: Path) -> None:
    found, wanted = (load_checkpoint(path, prefer="last") for path in (folder, expected))
    assert found.step == wanted.step == STEPS
    for name in ("network_state", "ema_state", "rng"):
        pairs = zip(getattr(found, name).items(), getattr(wanted, name).items(), strict=True)
        assert all(torch.equal(a, b) for (_, a), (_, b) in pairs)
    for a, b in zip(found.optimizer_state["state"].values(), wanted.optimizer_state["state"].values(), strict=True):
        assert all(torch.equal(a[key], b[key]) for key in ("exp_avg", "exp_avg_sq", "step"))
    lines = [(path / "metrics.jsonl").read_text().splitlines() for path in (folder, expected)]
    losses = [[(r["step"], r["loss"]) for r in map(json.loads, part) if "loss" in r] for part in lines]
    assert losses[0] == losses[1]


def test_17_and_a_kill_and_the_rest_are_40(whole: Callable[[], Path], tmp_path: Path) -> None:
    assert _worker(tmp_path, 0, 17) == -signal.SIGKILL
    assert load_checkpoint(tmp_path, prefer="last").step == 16  # what was signalled loses nothing; a kill, one step
    torch.manual_seed(99)  # what happens between must not matter
    fit(fake_store(), settings(2, STEPS), tmp_path, resume=True)
    _same(tmp_path, whole())


@pytest.mark.nightly
@pytest.mark.timeout(900)
@pytest.mark.parametrize("threads", [0, 1, 2, 4])
def test_ten_kills_and_the_rest_are_40(threads: int, whole: Callable[[], Path], tmp_path: Path) -> None:
    """Each point in a run of its own, and all of them one after the other in one."""
    for point in POINTS:
        assert _worker(tmp_path / str(point), threads, point) == -signal.SIGKILL
        assert _worker(tmp_path / str(point), threads, -1) == 0
        _same(tmp_path / str(point), whole())
        assert _worker(tmp_path / "all", threads, point) in (-signal.SIGKILL, 0)
    assert _worker(tmp_path / "all", threads, -1) == 0
    _same(tmp_path / "all", whole())
