"""Several processes of one run, as torchrun starts them; gloo on the CPU."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks_worker import make_store, settings

from livprep.errors import UsageError
from livtrain.checkpoint import load_checkpoint
from livtrain.trainer import fit
from livtrain.trainer.distributed import Ranks, joined

TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
HERE = Path(__file__).parent


def _torchrun(*command: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    paths = [str(HERE), str(HERE.parents[1]), str(HERE.parents[1] / "cli"), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*TORCHRUN, *map(str, command)], cwd=cwd, env=environment, capture_output=True, text=True, timeout=240
    )


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folders that two ranks left."""
    folder = tmp_path_factory.mktemp("ranks")
    done = _torchrun(HERE / "ranks_worker.py", folder, cwd=folder)
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


def _losses(folder: Path) -> dict[int, float]:
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {record["step"]: record["loss"] for record in records if "loss" in record}


def _dice(folder: Path) -> list[float]:
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [record["val_dice"] for record in records if "val_dice" in record]


def test_two_ranks_are_one_process_with_the_doubled_batch(ranks: Path, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    fit(make_store(), settings("batch=2"), tmp_path / "single")
    one, two = _losses(tmp_path / "single"), _losses(ranks / "whole")
    assert list(two) == list(range(1, 21))
    assert max(abs(one[step] - two[step]) for step in one) < 1e-5
    assert _dice(ranks / "whole") == pytest.approx(_dice(tmp_path / "single"), abs=0.01)
    fit(make_store(), settings("batch=2", "accumulate=2", "steps=5"), tmp_path / "accumulated")
    one, two = _losses(tmp_path / "accumulated"), _losses(ranks / "accumulated")
    assert max(abs(one[step] - two[step]) for step in one) < 1e-5


def test_the_global_batch_and_the_learning_rate_are_stated_by_one_rank(ranks: Path) -> None:
    first, second = (json.loads((ranks / f"said-{rank}.json").read_text()) for rank in (0, 1))
    assert any("batch 1 x 2 processes = 2 patches a step; learning rate 0.003, not scaled" in line for line in first)
    assert second == []
    summary = json.loads((ranks / "whole" / "summary.json").read_text())
    assert (summary["processes"], summary["global_batch"]) == (2, 2)
    assert {path.stem for path in (ranks / "whole" / "previews").iterdir()}


def test_a_signal_to_one_rank_stops_all_and_the_run_goes_on_bit_for_bit(ranks: Path) -> None:
    for rank in (0, 1):
        code, text = json.loads((ranks / f"refused-{rank}.json").read_text())["resumed"]
        assert (code, "stopped by SIGUSR1 at step 7" in text) == ("INTERRUPTED", True)
    whole, resumed = (load_checkpoint(ranks / name, prefer="last") for name in ("dropout", "resumed"))
    assert whole.world == 2
    assert set(whole.rng) == {"cpu", "cpu.1"}
    assert not torch.equal(whole.rng["cpu"], whole.rng["cpu.1"])  # dropout differs among ranks
    assert all(torch.equal(value, resumed.network_state[name]) for name, value in whole.network_state.items())
    assert _losses(ranks / "dropout") == _losses(ranks / "resumed")


def test_a_loss_that_is_not_finite_on_one_rank_ends_all_and_names_its_case(ranks: Path) -> None:
    for rank in (0, 1):
        refused = json.loads((ranks / f"refused-{rank}.json").read_text())
        code, text = refused["diverged"]
        assert (code, "step 3: the loss is nan on fake-0" in text) == ("DIVERGED", True)
        assert refused["unknown"][0] == "SPLIT_INVALID"


def test_a_run_of_two_processes_is_not_continued_by_one(ranks: Path, tmp_path: Path) -> None:
    shutil.copytree(ranks / "whole", tmp_path / "run")
    with pytest.raises(UsageError, match="it had 2 processes and has 1"):
        fit(make_store(), settings("batch=1"), tmp_path / "run", resume=True)


def test_the_command_under_torchrun(store_copy: Path, tmp_path: Path) -> None:
    tiny = ("patch_zyx=[8,16,16]", "width=2", "overlap=0", "train_dice_cases=0", "validation_cases=2", "batch=1")
    sets = [text for each in tiny for text in ("--set", each)]
    command = ("fit", "--store", store_copy, "--device", "cpu", "--steps", "3", "--json", *sets)
    done = _torchrun("-m", "livcli.livtrain_main", *command, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-4000:]
    (line,) = done.stdout.splitlines()  # one rank speaks
    assert json.loads(line) == json.loads((tmp_path / "runs" / "liver" / "summary.json").read_text())
    assert (json.loads(line)["steps"], json.loads(line)["processes"]) == (3, 2)
    assert done.stderr.count("windows: ") == 1


def test_alone_nothing_is_exchanged() -> None:
    alone = Ranks()
    assert alone.first
    assert alone.largest(1, 2) == [1, 2]
    assert alone.mean(torch.tensor([1.0, 3.0])) == [1, 3]
    assert alone.gather("x") == ["x"]
    assert alone.part((1, 2, 3)) == (1, 2, 3)
    assert alone.device("cuda:3") == "cuda:3"


@pytest.mark.parametrize("world", [1, 2, 3, 5])
def test_what_is_dealt_comes_back_in_order(world: int) -> None:
    values = tuple(range(7))
    parts = [list(Ranks(rank, world).part(values)) for rank in range(world)]
    assert Ranks(0, world).in_order(parts) == list(values)


def test_one_gpu_for_all_ranks_is_refused() -> None:
    with pytest.raises(UsageError, match=r"device 'cuda:1' for 2 processes: expected auto, cuda"):
        Ranks(0, 2).device("cuda:1")
    assert Ranks(1, 2, 1).device("cuda") == "cuda:1"
    assert Ranks(1, 2, 1).device("cpu") == "cpu"


def test_ranks_of_one_machine_take_a_gpu_each_and_stay_on_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    names, asked = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"), list[Any]()
    for name in names:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    for name, value in {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", asked.append)
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda backend, timeout: asked.append(backend))
    monkeypatch.setattr(torch.distributed, "barrier", lambda device_ids: asked.append(device_ids))
    monkeypatch.setattr(torch.distributed, "destroy_process_group", lambda: asked.append("end"))
    with joined() as ranks:
        assert ranks.device("auto") == "cuda:1"
    assert asked == [1, "cpu:gloo,cuda:nccl", [1], "end"]
    assert [os.environ[name] for name in names] == ["lo", "lo"]
