from __future__ import annotations

import csv
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_store import FakeStore, fake_store
from hypothesis import given
from hypothesis import strategies as st

from livprep.errors import RunError, UsageError
from livprep.splits import Split
from livprep.windows import WindowBank
from livtrain import losses, trainer
from livtrain.checkpoint import load_checkpoint
from livtrain.config import Settings, load_settings, resolve
from livtrain.trainer import StepReport, Stopped, Summary, fit, loop, run
from livtrain.trainer.schedule import learning_rate

SMALL = (
    "patch_zyx=[8,16,16]", "width=2", "steps=12", "validate_every=4", "checkpoint_s=1000", "batch=2", "overlap=0",
    "dropout=0.3", "train_dice_cases=1", "warmup=0.2", "validation_share=null",
)  # fmt: skip


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


def _stop_at(step: int, number: int = signal.SIGUSR1) -> Any:
    def on_step(report: StepReport) -> None:
        if report.step == step:
            os.kill(os.getpid(), number)

    return on_step


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Summary, list[str]]:
    """An undisturbed run of 12 steps."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("runs") / "whole"
    lines: list[str] = []
    return folder, fit(fake_store(), _settings(), folder, say=lines.append), lines


def test_a_run_folder_holds_what_it_should(whole: tuple[Path, Summary, list[str]]) -> None:
    folder, summary, _ = whole
    names = {path.name for path in folder.iterdir()}
    assert {
        "config.yaml", "metrics.jsonl", "metrics.csv", "loss.png", "dice.png", "last.pt", "best.pt", "previews",
        "summary.json",
    } <= names  # fmt: skip
    assert [name for name in names if name.startswith("events.out.tfevents")]
    assert not [name for name in names if name.endswith(".tmp")]
    for picture in ("loss.png", "dice.png", *(f"previews/{p.name}" for p in (folder / "previews").iterdir())):
        assert (folder / picture).read_bytes().startswith(b"\x89PNG")
    content = json.loads((folder / "summary.json").read_text())
    assert {"stage", "steps", "seconds", "best_val_dice", "patches_per_s", "data_wait_fraction", "device"} <= set(
        content
    )
    assert (content["stage"], content["steps"], content["stopped_by"], content["device"]) == (
        "liver",
        12,
        "steps",
        "cpu",
    )
    assert content["best_val_dice"] == summary.best_val_dice
    assert 0 <= content["data_wait_fraction"] <= 1
    assert load_settings(folder / "config.yaml") == load_checkpoint(folder).settings


def test_metrics_hold_every_step_and_validation(whole: tuple[Path, Summary, list[str]]) -> None:
    folder, summary, _ = whole
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in records if "loss" in r] == list(range(1, 13))
    scored = {r["step"]: r["val_dice"] for r in records if "val_dice" in r}
    assert list(scored) == [4, 8, 12]
    assert max(scored.values()) == summary.best_val_dice == scored[summary.best_step or 0]
    assert load_checkpoint(folder).step == summary.best_step
    with (folder / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(records)
    assert float(rows[0]["loss"]) == records[0]["loss"]


def test_each_choice_is_said(whole: tuple[Path, Summary, list[str]]) -> None:
    text = "\n".join(whole[2])
    for part in (
        "device: cpu; preset: fast-cpu",
        "split: made and recorded as 'default'",
        "2 cases to train, 1 to validate",
        "windows: wl40_ww220 (WL 40 WW 220 HU), wl60_ww140 (WL 60 WW 140 HU)",
        "patch: 8x16x16 voxels",
        "step 4: validation Dice",
        "training Dice",
    ):
        assert part in text


@pytest.mark.parametrize(("step", "threads"), [(5, 1), (8, 3)])
def test_resuming_gives_the_same_parameters(
    step: int, threads: int, whole: tuple[Path, Summary, list[str]], tmp_path: Path
) -> None:
    store = fake_store()
    with pytest.raises(Stopped) as caught:
        fit(store, _settings(), tmp_path, on_step=_stop_at(step))
    assert (caught.value.code, caught.value.exit_code) == ("INTERRUPTED", 75)
    assert f"stopped by SIGUSR1 at step {step}" in str(caught.value)
    assert load_checkpoint(tmp_path, prefer="last").step == step
    torch.manual_seed(99)  # what happens between must not matter
    summary = fit(store, _settings(f"loader_threads={threads}"), tmp_path, resume=True)
    expected = _weights(whole[0])
    assert all(torch.equal(value, expected[name]) for name, value in _weights(tmp_path).items())
    assert summary.best_val_dice == whole[1].best_val_dice
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in records if "loss" in r] == list(range(1, 13))
    assert [r["step"] for r in records if "val_dice" in r] == [4, 8, 12]


def test_records_after_the_checkpoint_are_done_again(whole: tuple[Path, Summary, list[str]], tmp_path: Path) -> None:
    """A kill loses steps after the last checkpoint; their records must not appear twice."""
    store = fake_store()
    with pytest.raises(Stopped):
        fit(store, _settings(), tmp_path, on_step=_stop_at(5))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "loss": 0.5}\n{"step": 7, "lo')
    fit(store, _settings(), tmp_path, resume=True)
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in records if "loss" in r] == list(range(1, 13))


@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGTERM, 143), (signal.SIGUSR2, 75), (signal.SIGINT, 130)])
def test_signals_save_the_step(number: signal.Signals, exit_code: int, tmp_path: Path) -> None:
    before = signal.getsignal(number)
    with pytest.raises(Stopped) as caught:
        fit(fake_store(), _settings(), tmp_path, on_step=_stop_at(2, number))
    assert caught.value.exit_code == exit_code
    assert load_checkpoint(tmp_path, prefer="last").step == 2
    assert signal.getsignal(number) is before


def test_a_signal_during_validation_does_not_wait_for_it(
    whole: tuple[Path, Summary, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = loop.validate

    def validate(*args: Any) -> Any:
        os.kill(os.getpid(), signal.SIGUSR1)
        return real(*args)

    store = fake_store()
    monkeypatch.setattr(loop, "validate", validate)
    with pytest.raises(Stopped, match="at step 4"):
        fit(store, _settings(), tmp_path)
    monkeypatch.undo()
    fit(store, _settings(), tmp_path, resume=True)
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in records if "val_dice" in r] == [4, 8, 12]
    expected = _weights(whole[0])
    assert all(torch.equal(value, expected[name]) for name, value in _weights(tmp_path).items())


def test_a_second_interrupt_ends_at_once(tmp_path: Path) -> None:
    def on_step(_: StepReport) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        fit(fake_store(), _settings(), tmp_path, on_step=on_step)


@pytest.mark.parametrize("log_every", [1, 3])
def test_divergence_names_the_case_and_keeps_the_checkpoint(
    log_every: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = losses.build_loss("dice_ce"), 0

    def poisoned(logits: Any, target: Any, weight: Any) -> Any:
        nonlocal calls
        calls += 1
        return real(logits, target, weight) * (float("nan") if calls > 6 * 4 else 1)  # four maps a step

    monkeypatch.setattr(run, "build_loss", lambda *_, **__: poisoned)
    with pytest.raises(RunError, match=r"step 7: the loss is nan on fake-0\d.*learning_rate") as caught:
        fit(fake_store(), _settings(f"log_every={log_every}"), tmp_path)
    assert (caught.value.code, caught.value.exit_code) == ("DIVERGED", 70)
    good = load_checkpoint(tmp_path, prefer="last")
    assert good.step == 4
    assert all(value.isfinite().all() for value in good.network_state.values())


def test_weights_that_are_not_finite_are_never_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = torch.optim.AdamW.step

    def step(self: Any, *args: Any) -> Any:
        real(self, *args)
        self.param_groups[0]["params"][0].data.fill_(float("inf"))

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    with pytest.raises(RunError, match=r"weights of .* are not finite"):
        fit(fake_store(), _settings("checkpoint_s=0", "validate_every=0"), tmp_path)
    assert not (tmp_path / "last.pt").exists()


def test_an_existing_run_is_not_overwritten(whole: tuple[Path, Summary, list[str]]) -> None:
    with pytest.raises(RunError, match="already holds a run") as caught:
        fit(fake_store(), _settings(), whole[0])
    assert (caught.value.code, caught.value.exit_code) == ("RUN_EXISTS", 2)


def test_resuming_nothing_starts(tmp_path: Path) -> None:
    assert fit(fake_store(), _settings("steps=1"), tmp_path / "new", resume=True).steps == 1


def test_resuming_refuses_another_course_or_other_data(tmp_path: Path) -> None:
    store = fake_store()
    with pytest.raises(Stopped):
        fit(store, _settings(), tmp_path, on_step=_stop_at(2))
    with pytest.raises(UsageError, match=r"--resume: learning_rate was 0\.003 and is 0\.5") as caught:
        fit(store, _settings("learning_rate=0.5"), tmp_path, resume=True)
    assert caught.value.code == "CONFIG_INVALID"
    other = FakeStore([store[case_id] for case_id in list(store)[:2]])
    other.write_split(Split(name="default", seed=0, train=("fake-00",), val=("fake-01",)))
    with pytest.raises(UsageError, match="cases are not those of the run"):
        fit(other, _settings(), tmp_path, resume=True)


def test_a_single_patient_trains_without_validation(tmp_path: Path) -> None:
    lines: list[str] = []
    summary = fit(fake_store(1), _settings("steps=3"), tmp_path, say=lines.append)
    assert any("trained without validation" in line for line in lines)
    assert summary.best_val_dice is None
    assert summary.train_dice is not None
    assert load_checkpoint(tmp_path).step == 3
    assert json.loads((tmp_path / "summary.json").read_text())["best_val_dice"] is None


def test_the_recorded_split_is_used(tmp_path: Path) -> None:
    store = fake_store(4)
    store.write_split(Split(name="mine", seed=0, train=("fake-03",), val=("fake-01",), test=("fake-00",)))
    fit(store, _settings("split=mine", "steps=1"), tmp_path)
    assert load_checkpoint(tmp_path).cases == {"train": ["fake-03"], "val": ["fake-01"]}
    assert store.split_names() == ["mine"]


@pytest.mark.parametrize(
    ("store", "assignments", "code", "message"),
    [
        (fake_store(1, bank=WindowBank(())), [], "NO_WINDOWS", "livprep window --wl 40 --ww 220"),
        (fake_store(1), ["split=other"], "SPLIT_INVALID", "recorded: none"),
        (FakeStore([]), [], "STORE_EMPTY", "no labelled cases"),
        (fake_store(1), ["network=nothing"], "CONFIG_INVALID", "expected one of"),
        (fake_store(1), ["loss=nothing"], "CONFIG_INVALID", "expected one of"),
        (fake_store(1), ["device=tpu9"], "CONFIG_INVALID", "expected auto, cpu"),
        (fake_store(1), ["device=xpu"], "CONFIG_INVALID", "expected auto, cpu"),
        (fake_store(1), ["device=cuda:99"], "CONFIG_INVALID", "CUDA devices found"),
        (fake_store(1), ["patch_zyx=[9,16,16]"], "CONFIG_INVALID", "multiple of 8"),
    ],
)
def test_what_cannot_run_is_refused(
    store: FakeStore, assignments: list[str], code: str, message: str, tmp_path: Path
) -> None:
    settings = resolve(preset="fast-cpu", assignments=[*SMALL, *assignments])
    with pytest.raises(UsageError, match=message) as caught:
        fit(store, settings, tmp_path)
    assert (caught.value.code, caught.value.exit_code) == (code, 2)


def test_a_case_without_the_channels_is_named(tmp_path: Path) -> None:
    store = fake_store(2)
    store["fake-01"].windows = WindowBank(())
    store.write_split(Split(name="default", seed=0, train=("fake-00", "fake-01")))
    with pytest.raises(UsageError, match=r"fake-01 does not store the channels \['wl40_ww220', 'wl60_ww140'\]"):
        fit(store, _settings(), tmp_path)
    assert fit(store, _settings("windows=hu:40/220", "steps=1"), tmp_path).steps == 1


@pytest.mark.parametrize("stage", ["tumor", "multiclass"])
def test_the_other_stages_run(stage: str, tmp_path: Path) -> None:
    summary = fit(fake_store(2), _settings(f"stage={stage}", "steps=2", "window_source=stored"), tmp_path)
    assert summary.stage == stage
    assert summary.best_val_dice is not None
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    names = {name for record in records for name in record if name.startswith("val_dice_")}
    assert names == ({"val_dice_tumor"} if stage == "tumor" else {"val_dice_liver", "val_dice_tumor"})


def test_a_patch_is_no_larger_than_the_volumes(tmp_path: Path) -> None:
    lines: list[str] = []
    settings = _settings("patch_zyx=[48,256,256]", "steps=1", "train_dice_cases=0")
    fit(fake_store(1, (9, 30, 33)), settings, tmp_path, say=lines.append)
    assert load_settings(tmp_path / "config.yaml").patch_zyx == (16, 32, 40)
    assert any("clipped from 48x256x256" in line for line in lines)


def test_time_ends_a_run(tmp_path: Path) -> None:
    settings = resolve(
        preset="fast-cpu", assignments=[text for text in SMALL if "steps" not in text], options={"time_s": 0.5}
    )
    summary = fit(fake_store(1), settings, tmp_path)
    assert summary.stopped_by == "time"
    assert summary.steps > 0
    assert summary.seconds < 20


def test_deterministic_is_given_back(tmp_path: Path) -> None:
    fit(fake_store(1), _settings("steps=1", "deterministic=true"), tmp_path)
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_run_learns(tmp_path: Path) -> None:
    settings = _settings("patch_zyx=[24,32,32]", "width=4", "steps=35", "validate_every=0", "dropout=0")
    summary = fit(fake_store(3), settings, tmp_path)
    assert summary.train_dice is not None
    assert summary.best_val_dice is not None
    assert min(summary.train_dice, summary.best_val_dice) > 0.8


@given(progress=st.floats(0, 1), warmup=st.sampled_from([0.0, 0.1]))
@pytest.mark.parametrize("schedule", ["multistep", "poly", "cosine", "one_cycle", "plateau", "constant"])
def test_learning_rates_stay_in_bounds(schedule: Any, progress: float, warmup: float) -> None:
    settings = Settings(schedule=schedule, learning_rate=2.0, warmup=warmup)
    assert 0 <= learning_rate(settings, progress) <= 2.0


def test_learning_rates_follow_their_formulas() -> None:
    def at(schedule: Any, *fractions: float, **options: Any) -> list[float]:
        settings = Settings(schedule=schedule, learning_rate=1.0, **options)
        return [learning_rate(settings, fraction) for fraction in fractions]

    assert at("multistep", 0, 0.49, 0.5, 0.75, 1) == pytest.approx([1, 1, 0.1, 0.01, 0.01])
    assert at("poly", 0, 0.5, 1) == pytest.approx([1, 0.5**0.9, 0])
    assert at("cosine", 0, 0.5, 1) == pytest.approx([1, 0.5, 0])
    assert at("constant", 0, 0.05, 0.1, 1, warmup=0.1) == pytest.approx([0.01, 0.505, 1, 1])


def test_the_package_offers_the_trainer() -> None:
    assert trainer.fit is fit


def test_a_structure_that_no_held_out_case_has_is_not_scored(tmp_path: Path) -> None:
    store = fake_store(2)
    store["fake-01"].labels[store["fake-01"].labels == 2] = 1
    store.write_split(Split(name="default", seed=0, train=("fake-00",), val=("fake-01",)))
    lines: list[str] = []
    summary = fit(store, _settings("stage=tumor", "steps=4"), tmp_path, say=lines.append)
    assert summary.best_val_dice is None
    assert any("validation Dice unknown (no case has it)" in line for line in lines)
    assert load_checkpoint(tmp_path).step == 4
    both = fit(store, _settings("stage=multiclass", "steps=4"), tmp_path / "both", say=lines.append)
    assert both.best_val_dice is not None


def test_the_default_split_is_that_of_the_split_command(tmp_path: Path) -> None:
    """A store divided by `fit` must not differ from one divided by `livprep split` with its defaults."""
    from livprep.cohort import IngestRequest, plan_ingest, run_ingest
    from livprep.division import SplitRequest, divide
    from livprep.store import open_store
    from livprep.synthesis import write_phantoms
    from livtrain.trainer.plan import make_plan

    write_phantoms(tmp_path / "data", "both", cases=3, seed=0, size=32)
    sources = (tmp_path / "data" / "ircadb", tmp_path / "data" / "lits")
    store = tmp_path / "liver.zarr"
    list(run_ingest(plan_ingest(IngestRequest(sources, store, workers=1))))
    settings = resolve(preset="fast-cpu", options={"windows": "hu:40/220"}, fallback_preset="fast-cpu")
    make_plan(open_store(store), settings, lambda _: None)
    made = open_store(store).read_split("default")
    assert made == divide(SplitRequest(store))[0]
