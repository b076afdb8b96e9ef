"""Array ingest and preempted training on a real SLURM, through the scripts of `livprep submit`."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from building import tree_hash
from slurm_node import Slurm, slurm

sys.path.insert(0, str(Path(__file__).parents[1] / "faults"))
from poison import held

from livprep.cohort import IngestRequest, plan_ingest, run_ingest
from livprep.store import is_store, open_store, remove_staging, staging_entries
from livprep.synthesis import write_lits

TINY = ("--set", "patch_zyx=[8,16,16]", "--set", "width=2", "--set", "overlap=0", "--set", "train_dice_cases=1")


def wait_for(condition: Callable[[], bool], what: str, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited in vain for {what}"
        time.sleep(0.05)


def staged(store: Path, case: str) -> bool:
    return is_store(store) and any(entry.name.startswith(f"{case}.") for entry in staging_entries(store))


def array_ingest(slurm: Slurm, folder: Path, cases: int, parts: int, size: int) -> None:
    """One task killed hard, one requeued, the missing part again: the store is that of a serial run."""
    sources, store, hold = folder / "in put", folder / "the store", folder / "hold"
    write_lits(sources, tuple(range(50, 50 + cases)), seed=1, size=size)
    names = [f"lits-{number:03d}" for number in range(50, 50 + cases)]
    requeued, killed = names[0], names[1 + parts]  # of part 1 and 2: the first, and one after another is published
    hold.touch()
    held_up = replace(slurm, environment=slurm.environment | held(folder / "site", [requeued, killed], hold))
    for each in ("SLURM_CONF", "PATH", "OMP_NUM_THREADS"):
        held_up.environment[each] = slurm.environment[each]
    held_up.environment["PYTHONPATH"] = f"{folder / 'site'}:{slurm.environment['PYTHONPATH']}"
    job = held_up.submit("--tasks", parts, "ingest", sources, "--store", store, "--workers", 1)
    wait_for(lambda: staged(store, requeued) and staged(store, killed), "the held cases")

    slurm.call("scancel", "--signal=KILL", "--batch", f"{job}_2")
    slurm.wait(f"{job}_2", "FAILED")
    assert killed not in open_store(store)
    slurm.call("scontrol", "requeue", f"{job}_1")
    slurm.wait(f"{job}_1", "PENDING", "RUNNING")
    assert requeued not in open_store(store)
    hold.unlink()
    for part in range(1, parts + 1):
        if part != 2:
            slurm.wait(f"{job}_{part}", "COMPLETED")
    assert sorted(open_store(store)) == sorted(set(names) - {killed, *names[1 + 2 * parts :: parts]})

    again = slurm.submit("--tasks", parts, "ingest", sources, "--store", store, "--workers", 1, part="2")
    slurm.wait(f"{again}_2", "COMPLETED")
    remove_staging(store)
    list(run_ingest(plan_ingest(IngestRequest((sources,), folder / "serial", workers=1))))
    assert len(open_store(store)) == cases
    assert tree_hash(store) == tree_hash(folder / "serial")


def test_an_array_ingest_survives_a_killed_and_a_requeued_task(
    slurm: Slurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    array_ingest(slurm, tmp_path, cases=6, parts=3, size=32)


@pytest.mark.nightly
@pytest.mark.timeout(1800)
def test_twelve_cases_in_four_parts(slurm: Slurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    array_ingest(slurm, tmp_path, cases=12, parts=4, size=96)


def test_an_ingest_warned_before_its_time_ends_with_75(
    slurm: Slurm, phantom_lits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    store, hold = tmp_path / "store", tmp_path / "hold"
    hold.touch()
    held_up = replace(slurm, environment=slurm.environment | {
        "PYTHONPATH": f"{tmp_path / 'site'}:{slurm.environment['PYTHONPATH']}"
    })  # fmt: skip
    held(tmp_path / "site", ["lits-028"], hold)
    job = held_up.submit("ingest", phantom_lits, "--store", store, "--workers", 1)
    wait_for(lambda: staged(store, "lits-028"), "the held case")
    slurm.call("scancel", "--signal=USR2", "--batch", job)
    slurm.wait(job, "FAILED")
    assert "ExitCode=75:0" in slurm.call("scontrol", "show", "job", "-o", job)
    assert staging_entries(store) == []
    assert "INTERRUPTED: stopped by SIGUSR2" in (tmp_path / f"livprep-ingest-{job}.log").read_text()


def preempted(slurm: Slurm, store: Path, folder: Path, times: int, steps: int) -> None:
    """A fit that is warned so often ends as one that nobody disturbed."""
    import torch

    from livtrain.checkpoint import load_checkpoint

    fit = ("livtrain", "fit", "--store", store, "--device", "cpu", "--steps", steps, "--windows", "hu:40/220", *TINY)
    run = folder / "runs" / "disturbed"
    job = slurm.submit(*fit, "--run", run)
    metrics, seen = run / "metrics.jsonl", 0
    for restarts in range(1, times + 1):
        wait_for(lambda n=seen: metrics.is_file() and len(metrics.read_text().splitlines()) > n, "some steps")
        slurm.call("scancel", "--signal=USR2", "--batch", job)
        wait_for(lambda n=restarts: f"Restarts={n} " in slurm.call("scontrol", "show", "job", "-o", job), "the requeue")
        wait_for(lambda: slurm.state(job) == "RUNNING", "the job to run again")
        seen = len(metrics.read_text().splitlines())
    slurm.wait(job, "COMPLETED")
    assert f"Restarts={times} " in slurm.call("scontrol", "show", "job", "-o", job)
    slurm.call(*fit, "--run", folder / "runs" / "calm", "-q")
    ours, theirs = (load_checkpoint(folder / "runs" / name, prefer="last") for name in ("disturbed", "calm"))
    assert ours.step == theirs.step == steps
    for name, value in theirs.weights.items():
        assert torch.equal(ours.weights[name], value), name


def test_a_fit_that_was_preempted_ends_as_if_it_was_not(
    slurm: Slurm, small_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    preempted(slurm, shutil.copytree(small_store, tmp_path / "liver.zarr"), tmp_path, times=1, steps=120)


@pytest.mark.nightly
@pytest.mark.timeout(3600)
def test_a_fit_that_was_preempted_twenty_times(
    slurm: Slurm, small_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    preempted(slurm, shutil.copytree(small_store, tmp_path / "liver.zarr"), tmp_path, times=20, steps=2400)


def test_workers_may_be_slurm_jobs_of_dask(
    slurm: Slurm, phantom_lits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`--cluster slurm`: TLS with credentials of the run alone, nothing left in the queue or the folder."""
    monkeypatch.chdir(tmp_path)
    words = ("ingest", phantom_lits, "--store", tmp_path / "store", "--cluster", "slurm", "--workers", 2, "--json")
    receipts = [json.loads(line) for line in slurm.call("livprep", *words).splitlines()]
    assert sorted((r["case"], r["status"]) for r in receipts) == [
        ("lits-028", "published"), ("lits-048", "published"), ("lits-068", "published"),
    ]  # fmt: skip
    list(run_ingest(plan_ingest(IngestRequest((phantom_lits,), tmp_path / "serial", workers=1))))
    assert tree_hash(tmp_path / "store") == tree_hash(tmp_path / "serial")
    assert not list(tmp_path.glob(".livprep-*"))
    wait_for(lambda: slurm.call("squeue", "--noheader", "--name=dask-worker") == "", "the workers to leave the queue")
