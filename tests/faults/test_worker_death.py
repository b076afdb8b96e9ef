"""A case that ends its worker is set aside alone; workers that die at random cost time and nothing else."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from building import tree_hash
from poison import DEEDS, poisoned

from livprep.cohort import IngestRequest, plan_ingest, run_ingest
from livprep.errors import CODES
from livprep.pipeline import LOOPBACK
from livprep.store import open_store, staging_entries
from livprep.synthesis import write_lits

COMMAND = [sys.executable, "-c", "from livcli.livprep_main import main; main()"]
QUARANTINE = {"exit": "WORKER_LOST", "segfault": "WORKER_LOST", "allocate": "CASE_TOO_LARGE"}


def set_aside(sources: Path, cases: int, case: str, deed: str, folder: Path) -> None:
    """All but one case are published, and that one has a code and a reason."""
    store = folder / "store"
    done = subprocess.run(
        [*COMMAND, "ingest", str(sources), "--store", str(store), "--workers", "2", "--json"],
        env=poisoned(folder / "site", case, deed),
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    receipts = {record["case"]: record for record in map(json.loads, done.stdout.splitlines())}
    assert done.returncode == 3, done.stderr
    assert "Traceback" not in done.stderr
    assert len(receipts) == cases
    # `unchanged`: published, but the worker died before it could say so, and the case was asked for again
    assert {name for name, record in receipts.items() if record["status"] not in ("published", "unchanged")} == {case}
    assert (receipts[case]["status"], receipts[case]["code"]) == ("rejected", QUARANTINE[deed])
    assert case in receipts[case]["detail"]
    assert QUARANTINE[deed] in CODES
    assert set(open_store(store)) == receipts.keys() - {case}
    assert staging_entries(store) == []


@pytest.mark.parametrize("deed", DEEDS)
def test_a_poison_case_is_set_aside_alone(phantom_lits: Path, tmp_path: Path, deed: str) -> None:
    set_aside(phantom_lits, 3, "lits-048", deed, tmp_path)


@pytest.mark.nightly
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("deed", DEEDS)
def test_a_poison_case_among_twenty(tmp_path: Path, deed: str) -> None:
    write_lits(tmp_path / "in", tuple(range(50, 70)), seed=1, size=32)
    set_aside(tmp_path / "in", 20, "lits-057", deed, tmp_path)


def dying_at_random(sources: Path, store: Path, mean_s: float) -> None:
    """Ingest on a running cluster whose worker processes end at random; what is lost is done by a second run."""
    from distributed import Client, LocalCluster
    from distributed.chaos import KillWorker

    with (
        LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            host=LOOPBACK,
            dashboard_address=f"{LOOPBACK}:0",
            worker_dashboard_address=None,
            memory_limit=0,
            silence_logs=50,
        ) as cluster,
        Client(cluster) as client,
    ):
        client.register_plugin(KillWorker(delay=f"{mean_s} s", mode="segfault"))
        request = IngestRequest((sources,), store, scheduler=cluster.scheduler_address)
        receipts = list(run_ingest(plan_ingest(request)))
    assert {receipt.status for receipt in receipts} <= {"published", "unchanged", "rejected"}
    assert {receipt.code for receipt in receipts} <= {"", "WORKER_LOST"}
    assert len({receipt.case for receipt in receipts}) == len(receipts)
    list(run_ingest(plan_ingest(IngestRequest((sources,), store, workers=1))))


def test_workers_that_die_at_random_cost_nothing(phantom_lits: Path, tmp_path: Path) -> None:
    dying_at_random(phantom_lits, tmp_path / "dying", 2.0)
    list(run_ingest(plan_ingest(IngestRequest((phantom_lits,), tmp_path / "calm", workers=1))))
    assert tree_hash(tmp_path / "dying") == tree_hash(tmp_path / "calm")
    assert staging_entries(tmp_path / "dying") == []


@pytest.mark.nightly
@pytest.mark.timeout(1800)
def test_workers_that_die_often_cost_nothing(tmp_path: Path) -> None:
    write_lits(tmp_path / "in", tuple(range(50, 70)), seed=1, size=32)
    dying_at_random(tmp_path / "in", tmp_path / "dying", 1.5)
    list(run_ingest(plan_ingest(IngestRequest((tmp_path / "in",), tmp_path / "calm", workers=1))))
    assert tree_hash(tmp_path / "dying") == tree_hash(tmp_path / "calm")
