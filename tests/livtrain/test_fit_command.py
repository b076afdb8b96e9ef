from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result

from livcli.livtrain_fit import fit
from livprep.errors import LivError
from livprep.store import open_store
from livtrain.checkpoint import load_checkpoint

TINY = ("--set", "patch_zyx=[8,16,16]", "--set", "width=2", "--set", "overlap=0", "--set", "train_dice_cases=1")


@pytest.fixture
def store(small_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A store of its own, in the folder that the command runs in."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LIVPREP_STORE", raising=False)
    shutil.copytree(small_store, tmp_path / "liver.zarr")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the volumes are tiny
    yield tmp_path / "liver.zarr"
    torch.set_num_threads(threads)


def _run(*arguments: str) -> Result:
    return CliRunner().invoke(fit, [*TINY, "--device", "cpu", *arguments])


def test_the_defaults_train_a_liver_run(store: Path) -> None:
    result = _run("--steps", "2", "--json")
    assert result.exit_code == 0, result.output
    summary = json.loads(result.stdout)
    assert (summary["stage"], summary["steps"], summary["run"]) == ("liver", 2, "runs/liver")
    assert json.loads(Path("runs/liver/summary.json").read_text()) == summary
    for part in ("device: cpu; preset: fast-cpu", "made and recorded as 'default'", "wl40_ww220", "validation Dice"):
        assert part in result.stderr
    split = open_store(store).read_split("default")
    assert split is not None
    assert load_checkpoint(Path("runs/liver")).cases == {"train": list(split.train), "val": list(split.val)}
    assert [w.name for w in load_checkpoint(Path("runs/liver")).settings.bank] == ["wl40_ww220", "wl60_ww140"]


def test_options_reach_the_settings(store: Path) -> None:
    result = _run(
        "--stage", "tumor", "--steps", "1", "--windows", "hu:60/140", "--seed", "5", "--network", "resunet_plain",
        "--loss", "tversky", "--time", "1h", "--preset", "fast-cpu", "--deterministic", "-q",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    settings = load_checkpoint(Path("runs/tumor")).settings
    assert (settings.stage, settings.seed, settings.network, settings.loss) == ("tumor", 5, "resunet_plain", "tversky")
    assert (settings.time_s, settings.steps, settings.deterministic) == (3600, 1, True)
    assert [(w.wl, w.ww) for w in settings.windows if not isinstance(w, str)] == [(60, 140)]


def test_resume_needs_no_settings_again(store: Path) -> None:
    assert _run("--steps", "2", "--seed", "3").exit_code == 0
    again = _run("--steps", "2")
    assert isinstance(again.exception, LivError)
    assert again.exception.code == "RUN_EXISTS"
    result = CliRunner().invoke(fit, ["--resume", "--steps", "4", "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["steps"] == 4
    settings = load_checkpoint(Path("runs/liver"), prefer="last").settings
    assert (settings.seed, settings.width) == (3, 2)
    other = CliRunner().invoke(fit, ["--resume", "--seed", "4"])
    assert isinstance(other.exception, LivError)
    assert "seed was 3 and is 4" in str(other.exception)


def test_plain_lines_say_where_the_run_is(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("livcli.livtrain_fit._LINE_EVERY_S", 0.0)
    result = _run("--steps", "2")
    assert "step 1 of 2, loss" in result.stderr
    (rate,) = {float(text) for text in re.findall(r"step 1 of 2, .* ([\d.]+) patches/s", result.stderr)}
    assert 0 < rate < 1e6  # of the step that was just done, not of a clock that has not moved yet
    assert re.search(r"step 1 of 2, .*waiting \d{1,2}%", result.stderr)
    assert "runs/liver: 2 steps" in result.stdout


def test_no_store_is_a_usage_error(tmp_path: Path) -> None:
    result = _run("--store", str(tmp_path / "none.zarr"))
    assert isinstance(result.exception, LivError)
    assert (result.exception.code, result.exception.exit_code) == ("STORE_MISSING", 2)


def test_help_needs_no_torch() -> None:
    code = (
        "import sys; from click.testing import CliRunner; from livcli.livtrain_fit import fit; "
        "result = CliRunner().invoke(fit, ['--help']); "
        "sys.exit(result.exit_code or ('torch' in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
