"""Optimizers, averaged weights, precision, schedules, memory: each small part, then through whole runs."""

from __future__ import annotations

import json
import math
import os
import signal
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_store import fake_store
from torch import nn

from livprep.errors import UsageError
from livprep.splits import Split
from livtrain.checkpoint import load_checkpoint
from livtrain.config import Settings, load_settings, resolve
from livtrain.inference import load_stage
from livtrain.networks import NETWORKS
from livtrain.presets import PRESETS
from livtrain.trainer import StepReport, Stopped, fit, journal, memory, run
from livtrain.trainer.memory import batch_by_memory, estimated_bytes
from livtrain.trainer.optimization import (
    Ema,
    Precision,
    build_for_training,
    build_optimizer,
    drop_encoder_gradients,
)
from livtrain.trainer.schedule import Plateau, learning_rate

SMALL = (
    "patch_zyx=[8,16,16]", "width=2", "steps=4", "validate_every=0", "checkpoint_s=1000", "batch=2", "overlap=0",
    "dropout=0.3", "train_dice_cases=0", "windows=hu:40/220", "validation_share=null", "ema=null",
)  # fmt: skip


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes most of the time of so short a run; `test_trainer` looks at the pictures."""
    monkeypatch.setattr(journal, "draw_curves", lambda *_, **__: None)
    monkeypatch.setattr(journal.Journal, "preview", lambda *_: None)


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the volumes are tiny
    yield
    torch.set_num_threads(threads)


def _settings(*assignments: str) -> Settings:
    return resolve(preset="fast-cpu", assignments=[*SMALL, *assignments], options={"device": "cpu"})


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(folder, prefer="last").network_state


def _records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def _equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


# -- whole runs -------------------------------------------------------------------------------------------------

RESUMED = {
    "sgd, one-cycle, EMA": ["optimizer=sgd", "schedule=one_cycle", "ema=0.9", "learning_rate=0.01", "validate_every=2"],
    "plateau": ["schedule=plateau", "patience=1", "learning_rate=1e-12", "validate_every=1"],
    "Adam, accumulation, recomputing": ["optimizer=adam", "accumulate=2", "activation_checkpointing=true"],
    "fp16": ["amp=fp16", "gradient_clip=null"],
    "bf16, EMA, another order": ["amp=bf16", "ema=0.99", "channels_last=false"],
    "frozen slices": ["network=resnet34_unet2d", "patch_zyx=[1,32,32]", "dropout=null", "frozen=0.5", "ema=0.9"],
    "class weights": ["stage=multiclass", "loss=wce", "class_weights=[0.36,6.6,14.4]"],
}


@pytest.mark.parametrize("name", RESUMED)
def test_resuming_is_exact_with_every_part(name: str, tmp_path: Path) -> None:
    store, settings = fake_store(), _settings(*RESUMED[name])

    def stop(report: StepReport) -> None:
        if report.step == 2:
            os.kill(os.getpid(), signal.SIGUSR1)

    whole = fit(store, settings, tmp_path / "whole")
    with pytest.raises(Stopped):
        fit(store, settings, tmp_path / "parts", on_step=stop)
    torch.manual_seed(99)  # what happens between must not matter
    parts = fit(store, settings, tmp_path / "parts", resume=True)
    assert (parts.steps, parts.best_val_dice, parts.loss) == (whole.steps, whole.best_val_dice, whole.loss)
    one, other = (load_checkpoint(tmp_path / folder, prefer="last") for folder in ("whole", "parts"))
    assert _equal(one.network_state, other.network_state)
    assert _equal(one.ema_state, other.ema_state)
    assert bool(one.ema_state) == (settings.ema is not None)
    assert one.schedule_state == other.schedule_state
    assert one.scaler_state == other.scaler_state
    if settings.schedule == "plateau":
        assert one.schedule_state["drops"] >= 2
    if settings.amp == "fp16":
        assert one.scaler_state["scale"] > 0


def test_a_part_that_changed_is_refused(tmp_path: Path) -> None:
    fit(fake_store(1), _settings("steps=1"), tmp_path)
    with pytest.raises(UsageError, match=r"optimizer was 'adamw' and is 'sgd'; ema was None and is 0\.9"):
        fit(fake_store(1), _settings("steps=2", "optimizer=sgd", "ema=0.9"), tmp_path, resume=True)


def test_accumulated_batches_equal_one_large_batch(tmp_path: Path) -> None:
    course = ["dropout=0", "steps=3", "gradient_clip=0.1", "optimizer=sgd", "learning_rate=0.1"]
    fit(fake_store(), _settings(*course, "batch=4"), tmp_path / "one")
    fit(fake_store(), _settings(*course, "batch=1", "accumulate=4"), tmp_path / "four")
    one, four = _weights(tmp_path / "one"), _weights(tmp_path / "four")
    assert all(torch.allclose(value, four[name], rtol=1e-4, atol=1e-6) for name, value in one.items())
    losses = [[r["loss"] for r in _records(tmp_path / run) if "loss" in r] for run in ("one", "four")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_averaged_weights_are_validated_and_predict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, torch.Tensor]] = []
    real = run.Run.validated_weights

    def watch(self: run.Run) -> Any:
        context = real(self)

        class Watched:
            def __enter__(self) -> None:
                context.__enter__()
                seen.append({k: v.clone() for k, v in owner.network.state_dict().items()})

            def __exit__(self, *args: Any) -> Any:
                return context.__exit__(*args)

        owner = self
        return Watched()

    monkeypatch.setattr(run.Run, "validated_weights", watch)
    summary = fit(fake_store(), _settings("ema=0.9", "validate_every=4"), tmp_path)
    best = load_checkpoint(tmp_path)
    assert summary.best_step == 4
    assert _equal(seen[0], best.ema_state)
    assert not _equal(best.ema_state, best.network_state)
    assert best.weights is best.ema_state
    assert _equal(dict(load_stage(tmp_path, ["liver"]).network.state_dict()), best.ema_state)


def test_the_loss_is_that_of_a_compiled_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """dynamo traces the network; the backend that would need a C++ compiler is left out."""
    monkeypatch.setattr(run.torch, "compile", partial(torch.compile, backend="eager"))
    course = ["steps=2", "validate_every=0", "dropout=0"]
    fit(fake_store(), _settings(*course), tmp_path / "plain")
    fit(fake_store(), _settings(*course, "compile=true"), tmp_path / "compiled")
    plain, compiled = _weights(tmp_path / "plain"), _weights(tmp_path / "compiled")
    assert plain.keys() == compiled.keys()  # no prefix of the wrapper
    assert all(torch.allclose(value, compiled[name], atol=1e-6) for name, value in plain.items())


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_trains_validates_and_loads_again(name: str, tmp_path: Path) -> None:
    z, y, x = NETWORKS[name].multiple_zyx
    patch = f"patch_zyx=[{z},{y},{2 * x if z > 1 else x}]"
    settings = _settings(f"network={name}", patch, "dropout=0", "steps=2", "validate_every=2", "stage=tumor")
    store = fake_store(2, (24, 32, 64))
    summary = fit(store, settings, tmp_path)
    assert summary.network == name
    assert summary.best_val_dice is not None
    assert load_settings(tmp_path / "config.yaml").patch_zyx[0] == (z if z > 1 else 1)
    assert load_stage(tmp_path, ["tumor"]).network(torch.rand(1, 1, z, y, 2 * x)).shape == (1, 1, z, y, 2 * x)


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_takes_a_step(preset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it is, but for its size, its windows (the store's own) and weights from elsewhere."""
    monkeypatch.setattr(memory, "MAX_BATCH", 2)
    monkeypatch.setattr(run.torch, "compile", lambda network, **_: network)
    z, y, x = NETWORKS[resolve(preset=preset).network].multiple_zyx
    size = [f"patch_zyx=[{z},{y},{2 * x}]", "width=2", "steps=1", "validate_every=1", "train_dice_cases=0"]
    settings = resolve(preset=preset, assignments=[*size, "pretrained=false", "overlap=0"], options={"device": "cpu"})
    summary = fit(fake_store(2, (24, 32, 64)), settings, tmp_path)
    assert (summary.preset, summary.steps) == (preset, 1)
    assert summary.loss is not None
    assert math.isfinite(summary.loss)


@pytest.mark.parametrize(
    ("assignments", "message"),
    [
        (["network=unet2d", "dropout=0.1", "patch_zyx=[1,16,16]"], "network unet2d has no dropout to set"),
        (["pretrained=true"], "network resunet has no pretrained to set"),
        (["frozen=0.1"], "frozen 0.1: network resunet has no pretrained layers"),
        (["network=unet2d", "patch_zyx=[1,24,16]", "dropout=null"], "patch of 1x24x16 .* multiple of 1, 16, 16"),
        (["network=resenc", "dropout=null"], "patch of 8x16x16 voxels .zyx. for resenc: .* multiple of 32"),
        (["class_weights=[1,2]"], "loss dice_ce: class weights belong to the loss wce alone"),
    ],
)
def test_parts_that_do_not_fit_are_refused(assignments: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        fit(fake_store(1), _settings(*assignments), tmp_path)
    assert caught.value.code == "CONFIG_INVALID"


def test_the_batch_by_memory_is_said_and_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    monkeypatch.setattr(memory, "MAX_BATCH", 2)
    settings = _settings("batch_by_memory=true", "batch=1", "steps=1")
    fit(fake_store(1), settings, tmp_path, say=lines.append)
    assert any("batch: 2 by memory: about 0.0 of" in line for line in lines)
    recorded = load_settings(tmp_path / "config.yaml")
    assert (recorded.batch, recorded.batch_by_memory) == (2, False)
    fit(fake_store(1), recorded.replace(steps=2), tmp_path, resume=True)


# -- parts ------------------------------------------------------------------------------------------------------


def test_the_memory_estimate_is_what_a_forward_pass_keeps(monkeypatch: pytest.MonkeyPatch) -> None:
    def estimate(**changes: Any) -> tuple[int, int]:
        settings = resolve(preset="lits2017").replace(windows=({"name": "w", "wl": 0, "ww": 400},), **changes)
        return estimated_bytes(settings)

    weights, patch = estimate()
    assert weights == 4 * 4 * 9_498_260
    assert patch / 1.5 == pytest.approx(4.8e9, rel=0.12)  # method.md, section 2
    assert estimate(amp="bf16")[1] == pytest.approx(patch / 2, abs=1)
    assert estimate(patch_zyx=(48, 128, 128))[1] == pytest.approx(patch / 4, rel=0.02)
    assert patch / 2 < estimate(activation_checkpointing=True)[1] < 0.8 * patch

    free = 64 * 2**30
    monkeypatch.setattr(memory, "free_bytes", lambda device: free)
    settings = resolve(preset="h200").replace(windows=({"name": "w", "wl": 0, "ww": 400},))
    batch, needed, found = batch_by_memory(settings, torch.device("cpu"))
    assert (batch, found) == (8, free)
    assert needed < 0.6 * free < 2 * needed
    free = 2**20
    assert batch_by_memory(settings, torch.device("cpu"))[0] == 1


@pytest.mark.parametrize(
    ("name", "kind"), [("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW), ("sgd", torch.optim.SGD)]
)
def test_optimizers_have_their_settings(name: Any, kind: type[torch.optim.Optimizer]) -> None:
    settings = Settings(optimizer=name, learning_rate=0.5, weight_decay=0.25, momentum=0.99)
    layer = nn.Linear(2, 2)
    layer.bias.requires_grad_(False)
    optimizer = build_optimizer(settings, layer)
    group = optimizer.param_groups[0]
    assert type(optimizer) is kind
    assert (group["lr"], group["weight_decay"], len(group["params"])) == (0.5, 0.25, 1)
    if name == "sgd":
        assert (group["momentum"], group["nesterov"]) == (0.99, True)


def test_ema_follows_its_formula_and_leaves_the_weights_alone() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    ema = Ema(network, 0.9)
    expected = {name: value.clone() for name, value in network.state_dict().items()}
    for step in range(1, 120):
        with torch.no_grad():
            network[0].weight.normal_()
        network(torch.rand(4, 2))
        ema.update(step)
        keep = min(0.9, (1 + step) / (10 + step))
        for name, value in network.state_dict().items():
            expected[name] = keep * expected[name] + (1 - keep) * value if value.is_floating_point() else value.clone()
    own = {name: value.clone() for name, value in network.state_dict().items()}
    assert all(torch.allclose(value, expected[name], atol=1e-6) for name, value in ema.state_dict().items())
    with ema.applied():
        assert _equal(dict(network.state_dict()), ema.state_dict())
    with pytest.raises(ZeroDivisionError), ema.applied():
        raise ZeroDivisionError
    assert _equal(dict(network.state_dict()), own)
    other = Ema(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)), 0.9)
    other.load_state_dict(ema.state_dict())
    assert _equal(other.state_dict(), ema.state_dict())


def test_an_overflow_in_fp16_leaves_the_step_out_and_halves_the_scale() -> None:
    layer = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(layer.parameters(), 0.1)
    precision = Precision("cpu", "fp16")
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    precision.backward(layer(torch.ones(1, 1)).sum() * float("inf"))
    precision.step(optimizer, layer, clip=1.0)
    assert _equal(dict(layer.state_dict()), before)
    assert precision.state_dict()["scale"] == 2**15
    again = Precision("cpu", "fp16")
    again.load_state_dict(precision.state_dict())
    assert again.state_dict() == precision.state_dict()
    with precision.autocast():
        assert layer(torch.ones(1, 1)).dtype == torch.float16
    with Precision("cpu", "bf16").autocast():
        assert layer(torch.ones(1, 1)).dtype == torch.bfloat16
    with Precision("cpu", "none").autocast():
        assert layer(torch.ones(1, 1)).dtype == torch.float32
    assert Precision("cpu", "bf16").state_dict() == {}


def test_clipping_is_to_the_unscaled_norm() -> None:
    for amp in ("none", "fp16"):
        layer = nn.Linear(1, 1)
        optimizer = torch.optim.SGD(layer.parameters(), 1.0)
        before = torch.cat([p.detach().clone().flatten() for p in layer.parameters()])
        precision = Precision("cpu", amp)
        precision.backward(layer(torch.full((1, 1), 100.0)).sum())
        precision.step(optimizer, layer, clip=0.5)
        moved = torch.cat([p.detach().flatten() for p in layer.parameters()]) - before
        assert moved.norm().item() == pytest.approx(0.5, rel=1e-4)


def test_frozen_filters_stay_and_norms_move() -> None:
    settings = _settings("network=resnet34_unet2d", "dropout=null", "patch_zyx=[1,32,32]").replace(
        windows=({"name": "w", "wl": 0, "ww": 400},)
    )
    network, order = build_for_training(settings, 1, torch.device("cpu"))
    assert order == torch.channels_last_3d
    network.train()(torch.rand(2, 1, 1, 32, 32)).square().mean().backward()
    drop_encoder_gradients(network)
    still = {name for name, p in network.named_parameters() if p.grad is None}
    assert still == {name for name, p in network.named_parameters() if ".encoder." in name and p.ndim > 1}
    assert len(still) == 36  # convolutions of ResNet34, three of them in shortcuts


def test_one_cycle_is_torchs() -> None:
    total = 1000
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 1.0, total_steps=total, pct_start=0.25, div_factor=25, final_div_factor=1e5 / 25,
        cycle_momentum=False,
    )  # fmt: skip
    settings = Settings(schedule="one_cycle", learning_rate=1.0)
    for step in range(total):
        assert learning_rate(settings, step / total) == pytest.approx(optimizer.param_groups[0]["lr"], abs=0.005)
        optimizer.step()
        if step < total - 1:
            theirs.step()
    assert [learning_rate(settings, p) for p in (0, 0.25, 1)] == pytest.approx([0.04, 1.0, 1e-5])


def test_a_plateau_drops_the_rate_like_keras_says() -> None:
    settings = Settings(schedule="plateau", learning_rate=1.0)
    plateau, seen = Plateau(), []
    for dice in (0.5, 0.6, 0.6, 0.60005, math.nan, 0.55, 0.7, 0.7, 0.7, 0.7, 0.7, 0.7, 0.7):
        plateau.observe(dice, patience=3)
        seen.append(plateau.drops)
    assert seen == [0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 3]
    assert learning_rate(settings, 0.5, plateau.drops) == pytest.approx(1e-3)
    assert learning_rate(settings, 0.5) == 1.0


def test_the_plateau_sees_validations(tmp_path: Path) -> None:
    store = fake_store(2)
    store.write_split(Split(name="default", seed=0, train=("fake-00",), val=("fake-01",)))
    settings = _settings("schedule=plateau", "patience=1", "learning_rate=1e-12", "validate_every=1", "dropout=0")
    fit(store, settings.replace(warmup=0.0), tmp_path)
    rates = [r["learning_rate"] for r in _records(tmp_path) if "loss" in r]
    assert rates == pytest.approx([1e-12 * 0.1**k for k in (0, 0, 1, 2)])
