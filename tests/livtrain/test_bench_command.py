from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from livcli.livtrain_bench import bench
from livprep.errors import LivError
from livprep.prepare import Preparation
from livprep.store import create_store

QUICK = ("--patch", "16,24,24", "--seconds", "0.05", "--device", "cpu")


def _run(*arguments: object) -> Result:
    return CliRunner().invoke(bench, ["loader", *map(str, (*QUICK, *arguments))])


def test_tiers_and_threads_are_measured(small_store: Path) -> None:
    result = _run(
        small_store, "--tier", "disk", "--tier", "ram", "--tier", "device", "--threads", "1,2", "--json", "-q"
    )
    assert result.exit_code == 0, result.output
    found = [json.loads(line) for line in result.stdout.splitlines()]
    assert [(each["tier"], each["threads"]) for each in found] == [
        (tier, threads) for tier in ("disk", "ram", "device") for threads in (1, 2)
    ]
    for each in found:
        assert each["patches"] >= 2
        assert each["patches_per_s"] == pytest.approx(each["patches"] / each["seconds"])
        assert each["bytes_per_s"] == pytest.approx(each["patches_per_s"] * 16 * 24 * 24 * 2)
        assert each["cpu_ms_per_patch"] > 0
        assert each["wait_fraction"] is None


def test_steps_show_the_waiting(small_store: Path) -> None:
    result = _run("--store", small_store, "--step-ms", 5, "--deliver", "packed", "--threads", 1)
    assert result.exit_code == 0, result.output
    head, row = result.stdout.splitlines()[:2]
    assert head.startswith("tier    threads  patches/s")
    assert row.split()[0] == "ram"
    assert row.endswith("%")
    assert "fit into" in result.stderr


def test_what_cannot_be_measured(small_store: Path, tmp_path: Path) -> None:
    assert "expected 3 positive numbers" in _run(small_store, "--patch", "16,16").output
    assert "expected one or more positive numbers" in _run(small_store, "--threads", "two").output
    create_store(tmp_path / "empty.zarr", Preparation(), "balanced", "none")
    result = _run(tmp_path / "empty.zarr")
    assert isinstance(result.exception, LivError)
    assert result.exception.code == "STORE_EMPTY"


def test_training_steps_are_measured(store_copy: Path) -> None:
    small = [f"--set={each}" for each in ("width=2", "patch_zyx=[16,16,16]", "batch=1", "validate_every=0")]
    arguments = ["step", "--store", str(store_copy), "--steps", "2", "--device", "cpu", *small]
    result = CliRunner().invoke(bench, [*arguments, "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert (found["steps"], found["batch"], found["patch_zyx"]) == (2, 1, [16, 16, 16])
    assert found["patches_per_s"] == pytest.approx(2 / found["seconds"])
    assert found["voxels_per_s"] == pytest.approx(found["patches_per_s"] * 16**3)
    assert found["peak_memory_bytes"] > 1 << 20
    assert "ms a step" in CliRunner().invoke(bench, [*arguments, "-q"]).stdout


def test_predictions_are_measured(small_store: Path) -> None:
    arguments = ["predict", "ircadb-0[12]", "--store", str(small_store), "--device", "cpu"]
    result = CliRunner().invoke(bench, [*arguments, "--json"])
    assert result.exit_code == 0, result.output
    found = [json.loads(line) for line in result.stdout.splitlines()]
    assert [each["case"] for each in found] == ["ircadb-01", "ircadb-02"]
    assert all(0 < each["network_share"] < 1 for each in found)
    assert "untrained networks of the preset fast-cpu" in result.stderr
    assert "% network)" in CliRunner().invoke(bench, [*arguments, "-q"]).stdout
