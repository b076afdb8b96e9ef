"""What validations decide: the best weights by a running mean, early stopping, and their share of the time."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_store import fake_store
from hypothesis import given
from hypothesis import strategies as st
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from livtrain.checkpoint import load_checkpoint
from livtrain.config import Settings, resolve
from livtrain.trainer import fit, loop
from livtrain.trainer.progress import Progress

TINY = (
    "patch_zyx=[8,16,16]", "width=2", "steps=6", "validate_every=1", "validation_share=null", "overlap=0",
    "train_dice_cases=0", "batch=1", "checkpoint_s=1000",
)  # fmt: skip


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the volumes are tiny
    yield
    torch.set_num_threads(threads)


def _settings(*assignments: str) -> Settings:
    return resolve(preset="fast-cpu", assignments=[*TINY, *assignments], options={"device": "cpu"})


def _scripted(monkeypatch: pytest.MonkeyPatch, dice: list[float]) -> None:
    """Validations give these Dice, one after the other."""
    values = iter(dice)
    monkeypatch.setattr(loop, "mean_dice", lambda _: {"liver": (value := next(values, math.nan)), "mean": value})


def test_one_lucky_validation_does_not_decide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _scripted(monkeypatch, [0.5, 0.9, 0.5, 0.6, 0.7, 0.8])
    summary = fit(fake_store(2), _settings("dice_ema=0.5"), tmp_path)
    # means: .5, .7, .6, .6, .65, .725
    assert (summary.best_step, summary.best_val_dice) == (6, 0.8)
    assert load_checkpoint(tmp_path).step == 6
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    means = [record["ema_val_dice"] for record in records if "ema_val_dice" in record]
    assert means == pytest.approx([0.5, 0.7, 0.6, 0.6, 0.65, 0.725])


def test_without_a_mean_the_highest_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _scripted(monkeypatch, [0.5, 0.9, 0.5, 0.6, 0.7, 0.8])
    summary = fit(fake_store(2), _settings("dice_ema=0"), tmp_path)
    assert (summary.best_step, summary.best_val_dice) == (2, 0.9)
    assert load_checkpoint(tmp_path).step == 2


def test_validations_without_progress_end_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _scripted(monkeypatch, [0.5, 0.6, 0.6, 0.55, 0.9, 0.9])
    summary = fit(fake_store(2), _settings("dice_ema=0", "early_stop=2"), tmp_path)
    assert (summary.steps, summary.stopped_by, summary.best_step) == (4, "early_stop", 2)
    assert fit(fake_store(2), _settings("dice_ema=0", "early_stop=2"), tmp_path, resume=True).steps == 4


def test_validations_keep_to_their_share(tmp_path: Path) -> None:
    lines: list[str] = []
    summary = fit(fake_store(2), _settings("validation_share=1e-6"), tmp_path, say=lines.append)
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records if "val_dice" in record] == [1, 6]  # the first, and the last always
    assert sum("validation left out" in line for line in lines) == 4
    assert 0 < summary.validation_fraction < 1


@given(times=st.lists(st.floats(0.01, 100), min_size=1, max_size=20), share=st.floats(0.01, 1))
def test_the_share_holds_after_every_validation_as_long_as_the_mean(times: list[float], share: float) -> None:
    progress, clock = Progress(), 0.0
    for step, trained in enumerate(times):
        clock += trained
        if progress.affordable(clock, share):
            took = 1.0
            clock += took
            progress.validated(step, took)
            if progress.validations > 1:
                assert progress.validating_s <= share * clock + 1e-9


@given(st.lists(st.one_of(st.floats(0, 1), st.just(math.nan)), max_size=20), st.floats(0, 0.99))
def test_the_best_is_the_highest_mean(dice: list[float], keep: float) -> None:
    progress, means, mean = Progress(), [], None
    for step, value in enumerate(dice):
        better = progress.observe(value, step, keep)
        if math.isnan(value):
            assert not better
            continue
        mean = value if mean is None else keep * mean + (1 - keep) * value
        assert better == (not means or mean > max(means))
        means.append(mean)
    assert progress.best_mean == (max(means) if means else None)


def test_tensorboard_shows_scalars_and_previews(tmp_path: Path) -> None:
    fit(fake_store(3), _settings("steps=2"), tmp_path)
    events: Any = EventAccumulator(str(tmp_path), size_guidance={"images": 0})
    events.Reload()
    tags = events.Tags()
    assert {"loss", "learning_rate", "val_dice", "val_dice_liver"} <= set(tags["scalars"])
    (tag,) = tags["images"]
    shown = events.Images(tag)
    assert [image.step for image in shown] == [1, 2]
    newest = (tmp_path / f"{tag}.png").read_bytes()
    assert shown[-1].encoded_image_string == newest
    width, height = struct.unpack(">II", newest[16:24])  # of the PNG's header
    assert (shown[-1].width, shown[-1].height) == (width, height)
