from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from livprep.errors import UsageError
from livprep.windows import Window, WindowBank
from livtrain.config import (
    PRESETS,
    Settings,
    WindowSetting,
    load_settings,
    parse_duration_s,
    parse_windows,
    resolve,
    settings_from,
)

BANK = WindowBank((Window(40, 220), Window(60, 140, "lesion")))


def test_later_sources_win(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("preset: fast-cpu\nwidth: 5\nbatch: 3\nseed: 1\naugment: {noise: 0.2}\n")
    settings = resolve(
        config=file, assignments=["batch=4", "augment.gamma=0", "seed=2"], options={"seed": 3, "loss": None}
    )
    preset = PRESETS["fast-cpu"]
    assert settings.preset == "fast-cpu"
    assert (settings.width, settings.batch, settings.seed) == (5, 4, 3)
    assert (settings.loss, settings.learning_rate) == (preset["loss"], preset["learning_rate"])
    assert (settings.augment.noise.p, settings.augment.gamma.p) == (0.2, 0.0)
    assert settings.augment.noise.sd == Settings().augment.noise.sd
    assert settings.augment.rotation == Settings().augment.rotation


def test_preset_named_on_the_command_line_beats_the_file(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("preset: fast-cpu\n")
    assert resolve(preset="gpu", config=file).width == 16
    assert resolve(fallback_preset="fast-cpu").width == PRESETS["fast-cpu"]["width"]


@pytest.mark.parametrize("name", PRESETS)
def test_presets_survive_yaml(name: str, tmp_path: Path) -> None:
    settings = resolve(preset=name, assignments=["sampling={tumor: 1}"]).replace(
        windows=tuple(WindowSetting.of(window) for window in BANK)
    )
    file = tmp_path / "config.yaml"
    file.write_text(settings.dump_yaml())
    assert load_settings(file) == settings
    assert resolve(config=file) == settings
    assert settings_from(settings.model_dump(mode="json")) == settings
    assert settings.bank == BANK


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("width: 4\nwidth: 8\n", "duplicate key 'width'"),
        ("augment:\n  noise: 0\n  noise: 1\n", "duplicate key 'noise'"),
        ("widht: 4\n", "widht: Extra inputs"),
        ("widht: 4\n", "the nearest key is width"),
        ("augment: {nois: 1}\n", "augment.nois"),
        ("augment: {nois: 1}\n", "the nearest key is augment.noise"),
        ("sampling: {tumour: 1}\n", "the nearest key is sampling.tumor"),
        ("schedule: plateau\nvalidate_every: 0\n", "expected validate_every above 0"),
        ("batch: 0\n", "batch: Input should be greater than or equal to 1"),
        ("patch_zyx: [8, 0, 8]\n", "expected positive sizes in voxels"),
        ("stage: kidney\n", "stage: Input should be 'liver'"),
        ("windows: ''\n", "expected 'stored'"),
        ("preset: tpu\n", "expected one of gpu, fast-cpu"),
        ("steps: null\n", "expected a limit for the run"),
        ("- 1\n", "expected a mapping of settings"),
        ("a: [\n", "a.yaml"),
    ],
)
def test_faulty_files_are_refused(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(text)
    with pytest.raises(UsageError) as caught:
        resolve(config=file)
    assert caught.value.code == "CONFIG_INVALID"
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["width", "=4", "width=[", "width=x", "augment=3"])
def test_faulty_assignments_are_refused(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        resolve(assignments=[text])
    assert caught.value.code == "CONFIG_INVALID"


def test_a_preset_that_does_not_exist_is_refused_in_settings_too() -> None:
    with pytest.raises(UsageError, match="preset 'tpu': expected one of gpu, fast-cpu, h200"):
        settings_from({"preset": "tpu"})


def test_presets_hold_what_their_sources_say() -> None:
    made = {name: resolve(preset=name) for name in PRESETS}
    lits, residual, paper = made["lits2017"], made["residual-unet3d"], made["paper-ircadb"]
    assert (lits.network, lits.loss, lits.optimizer, lits.learning_rate) == ("resunet", "tversky", "adam", 1e-4)
    assert (lits.patch_zyx, lits.batch, lits.milestones, lits.windows) == ((48, 256, 256), 1, (0.5, 0.75), "hu:0/400")
    assert (lits.supervision.alpha, lits.supervision.decay, lits.supervision.decay_every) == (0.33, 0.8, 40 / 1000)
    assert (residual.optimizer, residual.momentum, residual.weight_decay) == ("sgd", 0.9, 1e-5)
    assert (residual.patch_zyx, residual.supervision.alpha, residual.milestones) == ((80, 112, 112), 0.4, (0.6,))
    assert (paper.network, paper.loss, paper.learning_rate, paper.batch) == ("unet2d", "dice", 1e-5, 8)
    assert made["multiclass-unet2d"].class_weights == (0.36, 6.6, 14.4)
    gpu = made["gpu"]
    assert (gpu.amp, gpu.channels_last, gpu.loss, gpu.schedule, gpu.ema) == ("bf16", True, "dice_ce", "cosine", 0.999)
    h200 = made["h200"]
    assert (h200.amp, h200.channels_last, h200.compile, h200.patch_zyx, h200.batch_by_memory) == (
        "bf16", True, True, (128, 128, 128), True,
    )  # fmt: skip


def test_a_time_alone_lifts_the_limit_of_steps() -> None:
    assert resolve(options={"time_s": 60.0}).steps is None
    assert resolve(options={"time_s": 60.0, "steps": 5}).steps == 5
    assert resolve(assignments=["time_s=60"]).steps is None


def test_windows_by_name_by_hu_and_all() -> None:
    assert parse_windows("stored", BANK) == tuple(WindowSetting.of(window) for window in BANK)
    assert parse_windows("lesion, wl40_ww220", BANK) == parse_windows("stored", BANK)[::-1]
    made = parse_windows("hu:-40.5/220, 60/140", WindowBank(()))
    assert [(w.name, w.wl, w.ww) for w in made] == [("wl-40.5_ww220", -40.5, 220), ("wl60_ww140", 60, 140)]


@pytest.mark.parametrize("text", ["hu:40", "hu:40/0", "hu:", "hu:40/220,40/220", "bone", "lesion,"])
def test_faulty_windows_are_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_windows(text, BANK)


def test_no_stored_windows_names_the_remedy() -> None:
    with pytest.raises(UsageError, match="livprep window --wl 40 --ww 220") as caught:
        parse_windows("stored", WindowBank(()))
    assert (caught.value.code, caught.value.exit_code) == ("NO_WINDOWS", 2)


def test_unresolved_windows_have_no_bank() -> None:
    with pytest.raises(UsageError, match="not resolved"):
        _ = Settings().bank


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("45s", 45), ("20m", 1200), ("2h", 7200), ("1h30m", 5400), ("0.5h", 1800)]
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration_s(text) == seconds


@pytest.mark.parametrize("text", ["", "h", "2x", "-1m", "0", "0s"])
def test_faulty_durations_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="duration"):
        parse_duration_s(text)


def test_settings_need_no_torch() -> None:
    code = "import sys, livtrain, livtrain.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
