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
