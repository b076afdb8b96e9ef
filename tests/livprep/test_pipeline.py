"""Tasks run serially or in worker processes; a task that kills its worker is set aside."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from livprep import pipeline
from livprep.cases import Receipt
from livprep.errors import StoreError
from livprep.pipeline import cores, free_memory_bytes, run_jobs


@dataclass(frozen=True)
class Task:
    """A job that writes down that it ran, then does as told."""

    name: str
    folder: str
    deed: str = ""

    def run(self) -> Receipt:
        """Do it."""
        with (Path(self.folder) / self.name).open("a") as file:
            file.write(f"{os.getpid()}\n")
        if self.deed == "exit":
            os._exit(7)
        if self.deed == "store":
            raise StoreError("STORE_UNREADABLE", "the store is gone")
        if self.deed == "disk":
            raise OSError(28, "No space left on device")
        if self.deed == "allocator":
            return Receipt(self.name, "published", detail=os.environ.get("MALLOC_TRIM_THRESHOLD_", "its own"))
        if self.deed == "listen":
            listening = [
                c.laddr.ip
                for process in [psutil.Process(), *psutil.Process(os.getppid()).children(recursive=True)]
                for c in process.net_connections(kind="inet")
                if c.status == psutil.CONN_LISTEN
            ]
            return Receipt(self.name, "published", detail=" ".join(sorted(set(listening))))
        return Receipt(self.name, "published")


def tasks(folder: Path, *deeds: str) -> list[Task]:
    return [Task(f"case-{k}", str(folder), deed) for k, deed in enumerate(deeds)]


def ran(folder: Path) -> dict[str, int]:
    return {path.name: len(path.read_text().split()) for path in folder.iterdir()}


@pytest.fixture(autouse=True)
def loopback_only(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every address that this process binds while jobs run."""
    bound: list[str] = []
    bind = socket.socket.bind

    def spy(self: socket.socket, address: object) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6):
            bound.append(address[0])
        bind(self, address)

    monkeypatch.setattr(socket.socket, "bind", spy)
    yield
    assert set(bound) <= {"127.0.0.1", "localhost", "::1"}, bound


def test_one_worker_runs_here_and_in_order(tmp_path: Path) -> None:
    receipts = list(run_jobs(tasks(tmp_path, "", "", ""), 1))
    assert [receipt.case for receipt in receipts] == ["case-0", "case-1", "case-2"]
    assert {path.read_text() for path in tmp_path.iterdir()} == {f"{os.getpid()}\n"}


def test_one_job_needs_no_processes(tmp_path: Path) -> None:
    list(run_jobs(tasks(tmp_path, ""), 4))
    assert (tmp_path / "case-0").read_text() == f"{os.getpid()}\n"


def test_serial_jobs_start_when_asked_for(tmp_path: Path) -> None:
    receipts = run_jobs(tasks(tmp_path, "", ""), 1)
    next(receipts)
    receipts.close()
    assert ran(tmp_path) == {"case-0": 1}


def test_no_jobs_no_receipts() -> None:
    assert list(run_jobs([], 4)) == []


def test_a_fault_of_the_store_ends_the_run(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="the store is gone"):
        list(run_jobs(tasks(tmp_path, "", "store", ""), 1))
    assert ran(tmp_path) == {"case-0": 1, "case-1": 1}


def test_workers_run_every_job_and_a_poison_case_is_set_aside(tmp_path: Path) -> None:
    before = set(psutil.Process().children(recursive=True))
    jobs = tasks(tmp_path, "", "exit", "", "listen", "allocator")
    receipts = {receipt.case: receipt for receipt in run_jobs(jobs, 2)}
    assert {name for name, receipt in receipts.items() if receipt.status == "published"} == {
        f"case-{k}" for k in (0, 2, 3, 4)
    }
    assert receipts["case-4"].detail == "its own"  # Dask's default has the kernel clear each buffer anew
    assert (receipts["case-1"].code, receipts["case-1"].detail) == (
        "WORKER_LOST",
        "case-1: its worker process died twice",
    )
    assert ran(tmp_path)["case-1"] == 2
    assert set(receipts["case-3"].detail.split()) <= {"127.0.0.1", "::1"}
    pids = {line for path in tmp_path.iterdir() for line in path.read_text().split()}
    assert str(os.getpid()) not in pids
    for _ in range(100):
        if not (left := set(psutil.Process().children(recursive=True)) - before - resource_trackers()):
            break
        time.sleep(0.1)
    assert not left


def resource_trackers() -> set[psutil.Process]:
    """Python's own helper of multiprocessing, which stays by design."""
    return {
        process
        for process in psutil.Process().children(recursive=True)
        if any("resource_tracker" in word or "forkserver" in word for word in process.cmdline())
    }


def test_a_taken_dashboard_port_is_no_matter(tmp_path: Path) -> None:
    with socket.socket() as taken:
        with contextlib.suppress(OSError):  # somebody else has it, which serves as well
            taken.bind(("127.0.0.1", 8787))
            taken.listen()
        assert len(list(run_jobs(tasks(tmp_path, "", ""), 2))) == 2  # a warning would be an error here


@pytest.mark.parametrize("deed", ["store", "disk"])
def test_a_fault_of_store_or_disk_in_a_worker_ends_the_run(tmp_path: Path, deed: str) -> None:
    with pytest.raises(OSError, match=r"the store is gone|No space left on device") as caught:
        list(run_jobs(tasks(tmp_path, deed, ""), 2))
    if deed == "store":
        assert (type(caught.value), caught.value.code) == (StoreError, "STORE_UNREADABLE")
    else:
        assert caught.value.errno == 28


def test_a_running_scheduler_can_be_used(tmp_path: Path) -> None:
    from distributed import LocalCluster

    with LocalCluster(
        n_workers=1,
        threads_per_worker=1,
        processes=False,
        protocol="tcp",
        host=pipeline.LOOPBACK,
        dashboard_address=f"{pipeline.LOOPBACK}:0",
        worker_dashboard_address=None,
    ) as cluster:
        receipts = list(run_jobs(tasks(tmp_path, "", ""), 1, scheduler=cluster.scheduler_address))
    assert sorted(receipt.case for receipt in receipts) == ["case-0", "case-1"]


def test_resources_are_those_of_this_process() -> None:
    assert cores() == len(os.sched_getaffinity(0))
    assert free_memory_bytes() > 0


@pytest.mark.parametrize("starts", [True, False])
def test_a_queue_that_starts_no_worker_is_told_of(starts: bool, caplog: pytest.LogCaptureFixture) -> None:
    class Client:
        def wait_for_workers(self, count: int, timeout: float) -> None:
            assert (count, timeout) == (1, 60)
            if not starts:
                raise TimeoutError

    pipeline._say_if_none_starts(Client(), 60, "no worker within %d s")
    assert ("no worker within 60 s; still waiting" in caplog.text) is not starts
