"""Windows as parameters: through training, checkpoint, validation, prediction and export."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fake_store import fake_store

from livprep.errors import UsageError
from livprep.windows import Window, WindowBank
from livtrain.augment import Augmenter
from livtrain.augment_config import AugmentSettings
from livtrain.checkpoint import load_checkpoint
from livtrain.config import Settings, WindowSetting, resolve
from livtrain.export.model import load_model
from livtrain.inference import load_stage, sliding_window
from livtrain.model import build_model, hull, learned_bank, model_input
from livtrain.networks import WindowedNetwork
from livtrain.trainer import fit
from livtrain.trainer.plan import make_plan
from livtrain.trainer.run import Run

TINY = (
    "patch_zyx=[8,16,16]", "width=2", "steps=6", "validate_every=3", "validation_share=null", "overlap=0",
    "train_dice_cases=0", "windows=learned:40/220,60/140", "learning_rate=0.02",
)  # fmt: skip
BANK = WindowBank((Window(40, 220), Window(60, 140)))


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the volumes are tiny
    yield
    torch.set_num_threads(threads)


def _settings(*assignments: str) -> Settings:
    return resolve(preset="fast-cpu", assignments=[*TINY, *assignments], options={"device": "cpu"})


def _run(*assignments: str) -> Run:
    return Run(make_plan(fake_store(2), _settings(*assignments), lambda _: None))


def _first_batch(run: Run) -> Any:
    with run.loader(lambda _: None) as loader:
        return next(loader)


def test_a_step_moves_the_windows_by_their_gradient() -> None:
    run = _run("weight_decay=0.5")
    assert isinstance(run.network, WindowedNetwork)
    windows, before = run.network.windows, learned_bank(run.network)
    run.train_step([_first_batch(run)])
    for parameter in windows.parameters():
        assert parameter.grad is not None
        assert float(parameter.grad.abs().min()) > 0
    after = learned_bank(run.network)
    assert before is not None
    assert after is not None
    assert [(w.center_hu, w.width_hu) for w in before] == [(40, 220), (60, 140)]
    moved = [abs(a.center_hu - b.center_hu) for a, b in zip(after, before, strict=True)]
    assert 0 < min(moved) <= max(moved) < 5  # some HU, and no pull towards 0


def test_the_gradient_is_that_of_differences() -> None:
    """Through augmentation's units and back, the slope of the loss over the center is the one that is computed."""
    # no voxel lies on an edge of these windows, where a clamp has two slopes
    run = _run("amp=fp64", "augment={preset: none}", "windows=learned:40.3/220,60.4/140")
    assert isinstance(run.network, WindowedNetwork)
    batch = _first_batch(run)
    center, losses = run.network.windows.center, []
    for move in (1e-5, -1e-5):
        with torch.no_grad():
            center[0] += move
            image, labels = run._augmented(batch)
            losses.append(float(run.loss(run.network.train()(image), run.stage.target(labels), None)))
            center[0] -= move
    run._backward(batch, 0.0, 1)
    assert center.grad is not None
    assert float(center.grad[0]) == pytest.approx((losses[0] - losses[1]) / 2e-5, rel=1e-3, abs=1e-7)


def test_at_the_start_the_channels_are_those_of_the_bank_without_rounding() -> None:
    run, plain = _run("augment={preset: none}"), _run("augment={preset: none}", "windows=hu:40/220,60/140")
    assert isinstance(run.network, WindowedNetwork)
    shifted, labels = run._augmented(_first_batch(run))
    channels, expected = plain._augmented(_first_batch(plain))
    assert torch.equal(labels, expected)
    learned = run.network.windows(shifted - 1024).detach()
    assert float((learned - channels).abs().max()) <= 0.5 / 255 + 1e-5


def test_values_beyond_the_window_are_kept_for_learning() -> None:
    packed = torch.tensor([0, 1024 - 500, 1024 + 40, 4095], dtype=torch.int16).view(torch.uint16).reshape(1, 1, 2, 2)
    augmenter = Augmenter(AugmentSettings(preset="none"), (1, 2, 2), 0, WindowBank((Window(40, 200),)), clamp=False)
    image, _ = augmenter.from_packed(packed, counters=[0], spacing_mm=[(1.0, 1.0, 1.0)])
    hu = image.flatten() * 200 - 60
    assert torch.allclose(hu, torch.tensor([-1024.0, -500.0, 40.0, 3071.0]), atol=1e-2)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run with learned windows."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("runs") / "learned"
    fit(fake_store(), _settings("window_softness=0"), folder)
    return folder


def test_the_windows_are_saved_shown_and_used_by_prediction(trained: Path) -> None:
    checkpoint = load_checkpoint(trained)
    assert checkpoint.settings.learn_windows
    model = load_stage(trained, ("liver",))
    bank = learned_bank(model.network)
    assert bank is not None
    assert [w.center_hu for w in bank] != [40, 60]
    # what validation computed and what prediction computes are the same numbers
    network = build_model(checkpoint.settings, 1)
    network.load_state_dict(checkpoint.weights)
    hu = fake_store()["fake-01"].read_hu()
    found = [
        sliding_window(each, model_input(checkpoint.settings, hu), (8, 16, 16), 0.0)
        for each in (network, model.network)
    ]
    assert np.array_equal(*found)
    summary = json.loads((trained / "summary.json").read_text())
    last = learned_bank_of(trained)
    assert [(w["wl"], w["ww"]) for w in summary["windows"]] == [(w.center_hu, w.width_hu) for w in last]
    records = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert [r["learned0_wl"] for r in records if "learned0_wl" in r][-1] == last.windows[0].center_hu


def learned_bank_of(folder: Path) -> WindowBank:
    """The windows of a run's last checkpoint."""
    checkpoint = load_checkpoint(folder, prefer="last")
    network = build_model(checkpoint.settings, 1)
    network.load_state_dict(checkpoint.network_state)
    bank = learned_bank(network)
    assert bank is not None
    return bank


def test_padding_is_air() -> None:
    settings = _settings().replace(windows=tuple(WindowSetting.of(window) for window in BANK), learn_windows=True)
    shifted = model_input(settings, np.array([[[-2000, -1024, 0, 3071, 5000]]], dtype=np.int16))
    assert shifted.tolist() == [[[[0, 0, 1024, 4095, 4095]]]]
    assert (hull(BANK).low_hu, hull(BANK).high_hu) == (-70, 150)


def test_an_export_has_what_was_learned_as_fixed_windows(trained: Path) -> None:
    model = load_model(trained)
    assert not model.settings.learn_windows
    assert not isinstance(model.network, WindowedNetwork)
    assert [w["name"] for w in json.loads(model.metadata["windows"])] == ["learned0", "learned1"]


@pytest.mark.parametrize("more", ["window_source=stored", "windows=learned:1000/5000"])
def test_learned_windows_need_packed_hu(more: str) -> None:
    with pytest.raises(UsageError, match="learned windows start from HU"):
        _run(more)
