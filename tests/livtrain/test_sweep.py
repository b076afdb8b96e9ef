"""The window search and the folds: many short runs from one command."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from fake_store import fake_store

from livcli.livtrain_fit import fit as fit_command
from livcli.livtrain_predict import predict as predict_command
from livcli.livtrain_sweep import sweep as sweep_command
from livprep.division import SplitRequest, divide
from livprep.errors import LivError, UsageError
from livprep.splits import Split
from livtrain.checkpoint import load_checkpoint, run_folders
from livtrain.config import Settings, resolve
from livtrain.trainer import Stopped, sweep
from livtrain.trainer.folds import fit_folds, fold_numbers
from livtrain.trainer.sweep import Cell, grid, parse_values, run_sweep

TINY = (
    "patch_zyx=[8,16,16]", "width=2", "steps=2", "validate_every=1", "validation_share=null", "overlap=0",
    "train_dice_cases=0", "batch=1",
)  # fmt: skip
SETS = [text for each in TINY for text in ("--set", each)]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the volumes are tiny
    yield
    torch.set_num_threads(threads)


def _settings(*assignments: str) -> Settings:
    return resolve(preset="fast-cpu", assignments=[*TINY, *assignments], options={"device": "cpu"})


def _store(test: bool = True) -> Any:
    store = fake_store(3)
    sides: dict[str, Any] = {"train": ("fake-00",), "val": ("fake-01",), "test": ("fake-02",) if test else ()}
    store.write_split(Split(name="default", seed=0, **sides))
    return store


CELLS = grid((40, 60), (140, 220))


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("30,40,50", (30, 40, 50)),
        ("200:240:20", (200, 220, 240)),
        ("50,-10:10:10,20", (-10, 0, 10, 20, 50)),
        ("200:230:20", (200, 220)),
        ("0.1:0.3:0.1", (0.1, 0.2, 0.30000000000000004)),
    ],
)
def test_values_of_a_grid(text: str, values: tuple[float, ...]) -> None:
    assert parse_values(text, "ww") == pytest.approx(values)


@pytest.mark.parametrize("text", ["", "a", "1:2", "1:2:0", "2:1:1", "30,30", "1:1e9:1"])
def test_faulty_values_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"--wl .*expected numbers in HU, as 30,40,50 or 200:240:20"):
        parse_values(text, "wl")


def test_a_grid_is_bounded() -> None:
    with pytest.raises(UsageError, match="at most 400 cells"):
        grid(tuple(range(30)), tuple(range(1, 31)))
    with pytest.raises(UsageError, match="widths above 0"):
        grid((30,), (0, 10))


def test_a_search_chooses_on_validation_and_reports_on_test(tmp_path: Path) -> None:
    found = run_sweep(_store(), _settings(), CELLS, tmp_path)
    assert [cell.name for cell in found.cells] == ["wl40_ww140", "wl40_ww220", "wl60_ww140", "wl60_ww220"]
    assert found.chosen is not None
    assert found.chosen.val_dice == max(cell.val_dice or 0 for cell in found.cells)
    assert found.test_cases == ("fake-02",)
    assert found.test_dice is not None
    with (tmp_path / "sweep.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["val_dice"]) for row in rows] == [cell.val_dice for cell in found.cells]
    assert json.loads((tmp_path / "sweep.json").read_text())["chosen"]["wl"] == found.chosen.wl
    assert (tmp_path / "heat_map.png").read_bytes().startswith(b"\x89PNG")
    cells = [load_checkpoint(tmp_path / cell.name, prefer="last").settings for cell in found.cells]
    assert {(s.seed, s.steps) for s in cells} == {(0, 2)}
    assert [(w.wl, w.ww) for s in cells for w in s.windows if not isinstance(w, str)] == [
        (40, 140), (40, 220), (60, 140), (60, 220),
    ]  # fmt: skip


def test_parts_of_a_search_meet(tmp_path: Path) -> None:
    first = run_sweep(_store(), _settings(), CELLS, tmp_path, part=(1, 2))
    assert first.missing == ("wl40_ww220", "wl60_ww220")
    assert first.chosen is None
    assert not (tmp_path / "test.json").exists()  # test is looked at once, after the choice
    second = run_sweep(_store(), _settings(), CELLS, tmp_path, part=(2, 2))
    assert second.missing == ()
    assert second.chosen is not None


def test_a_search_that_was_stopped_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(report: Any) -> None:
        if report.step == 1 and (tmp_path / "wl40_ww140" / "cell.json").exists():
            os.kill(os.getpid(), signal.SIGUSR1)

    with pytest.raises(Stopped):
        run_sweep(_store(), _settings(), CELLS, tmp_path, on_step=stop)
    done = (tmp_path / "wl40_ww140" / "last.pt").stat().st_mtime_ns
    trained: list[Path] = []
    real = sweep.fit
    monkeypatch.setattr(sweep, "fit", lambda *a, **k: trained.append(a[2]) or real(*a, **k))
    found = run_sweep(_store(), _settings(), CELLS, tmp_path)
    assert [path.name for path in trained] == ["wl40_ww220", "wl60_ww140", "wl60_ww220"]
    assert (tmp_path / "wl40_ww140" / "last.pt").stat().st_mtime_ns == done
    whole = run_sweep(_store(), _settings(), CELLS, tmp_path / "whole")
    assert [cell.val_dice for cell in found.cells] == [cell.val_dice for cell in whole.cells]
    assert (found.test_dice, found.chosen and found.chosen.name) == (
        whole.test_dice,
        whole.chosen and whole.chosen.name,
    )
    trained.clear()
    run_sweep(_store(), _settings(), CELLS, tmp_path)
    assert trained == []


def test_a_cell_of_other_settings_is_refused(tmp_path: Path) -> None:
    cells = (Cell(40, 220),)
    run_sweep(_store(test=False), _settings(), cells, tmp_path)
    with pytest.raises(UsageError, match="trained with other settings; choose another --out"):
        run_sweep(_store(), _settings("seed=1"), cells, tmp_path)


def test_a_search_needs_validation_and_can_do_without_test(tmp_path: Path) -> None:
    lines: list[str] = []
    found = run_sweep(_store(test=False), _settings(), (Cell(40, 220),), tmp_path / "a", say=lines.append)
    assert (found.chosen is not None, found.test_dice) == (True, None)
    assert any("no test cases" in line for line in lines)
    with pytest.raises(UsageError, match="no validation cases"):
        run_sweep(fake_store(1), _settings(), (Cell(40, 220),), tmp_path / "b")


@pytest.fixture
def folder(small_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a store of its own, in which the commands run."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LIVPREP_STORE", raising=False)
    shutil.copytree(small_store, tmp_path / "liver.zarr")
    return tmp_path


def _run(command: Any, *arguments: str) -> Result:
    return CliRunner().invoke(command, [*arguments, "--device", "cpu"])


def test_the_sweep_command(folder: Path) -> None:
    divide(SplitRequest(folder / "liver.zarr", val=0.2, test=0.2))
    arguments = ("--wl", "40", "--ww", "220:240:20", "--preset", "fast-cpu", *SETS)
    part = _run(sweep_command, *arguments, "--part", "2/2")
    assert part.exit_code == 0, part.output
    assert "1 of 2 cells are not trained yet: wl40_ww220" in part.stdout
    done = _run(sweep_command, *arguments)
    assert done.exit_code == 0, done.output
    assert "WW \\ WL        40" in done.stdout
    assert "chosen: WL 40 WW 2" in done.stdout
    assert "test Dice" in done.stdout
    again = json.loads(_run(sweep_command, *arguments, "--json", "-q").stdout)
    assert again["missing"] == []
    assert again["chosen"]["run"] == f"runs/sweep-liver/{again['chosen']['run'].split('/')[-1]}"
    assert _run(sweep_command, *arguments, "--part", "3/2").exit_code == 2


def test_folds_are_trained_and_predict_together(folder: Path) -> None:
    divide(SplitRequest(folder / "liver.zarr", folds=2))
    arguments = ("--preset", "fast-cpu", *SETS, "--fold")
    one = _run(fit_command, *arguments, "1")
    assert one.exit_code == 0, one.output
    assert Path("runs/liver/fold-1/best.pt").is_file()
    every = _run(fit_command, *arguments, "all", "--resume", "--json")
    assert every.exit_code == 0, every.output
    assert "fold 1: finished before (2 steps)" in every.stderr
    assert [json.loads(line)["run"] for line in every.stdout.splitlines()] == ["runs/liver/fold-0", "runs/liver/fold-1"]
    splits = [load_checkpoint(Path(f"runs/liver/fold-{k}")) for k in (0, 1)]
    assert [each.settings.split for each in splits] == ["default-fold0", "default-fold1"]
    assert not set(splits[0].cases["val"]) & set(splits[1].cases["val"])
    folds = json.loads(Path("runs/liver/folds.json").read_text())
    assert set(folds["folds"]) == {"fold-0", "fold-1"}
    assert 0 <= folds["mean_val_dice"] <= 1
    assert run_folders(Path("runs/liver")) == (Path("runs/liver/fold-0"), Path("runs/liver/fold-1"))
    together = _run(predict_command, "ircadb-01", "--liver", "runs/liver", "-o", "a", "--probabilities")
    assert together.exit_code == 0, together.output
    assert "2 liver and 0 tumor network(s)" in together.stderr
    named = ("--liver", "runs/liver/fold-0", "--liver", "runs/liver/fold-1")
    assert _run(predict_command, "ircadb-01", *named, "-o", "b", "--probabilities").exit_code == 0
    first, second = (Path(name, "probabilities", "ircadb-01_liver.nii.gz") for name in ("a", "b"))
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize(
    ("wanted", "folds", "message"),
    [("0", 0, "has no folds; run `livprep split --folds 5`"), ("2", 2, "has the folds 0, 1"), ("x", 2, "expected one")],
)
def test_folds_that_are_not_there_are_refused(wanted: str, folds: int, message: str) -> None:
    store = fake_store(2)
    for k in range(folds):
        store.write_split(Split(name=f"default-fold{k}", seed=0, train=(f"fake-0{k}",), val=(f"fake-0{1 - k}",)))
    with pytest.raises(UsageError, match=message) as caught:
        fold_numbers(store, "default", wanted)
    assert caught.value.code == "SPLIT_INVALID"


def test_a_fold_that_was_stopped_goes_on(tmp_path: Path) -> None:
    store = fake_store(2)
    for k in (0, 1):
        store.write_split(Split(name=f"default-fold{k}", seed=0, train=(f"fake-0{k}",), val=(f"fake-0{1 - k}",)))

    def stop(report: Any) -> None:
        if (tmp_path / "fold-0" / "summary.json").exists():
            os.kill(os.getpid(), signal.SIGUSR1)

    with pytest.raises(LivError, match="stopped by SIGUSR1"):
        fit_folds(store, _settings(), tmp_path, [0, 1], on_step=stop)
    assert [s.steps for s in fit_folds(store, _settings(), tmp_path, [0, 1], resume=True)] == [2, 2]
