"""`--scheduler`: a real scheduler and workers as processes of their own over TLS; and what does not answer."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dask
import pytest
from building import tree_hash
from distributed import Client
from distributed.security import Security

from livprep import pipeline
from livprep.errors import LivError
from livprep.pipeline import run_jobs
from livprep.provenance import package_version

Livprep = Callable[..., Any]


@dataclass(frozen=True)
class Scheduler:
    """Its address, Dask's settings that hold credentials for it, and how to start workers for it."""

    address: str
    settings: dict[str, str]
    start_workers: Callable[[], None]


@pytest.fixture(scope="module")
def scheduler(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scheduler]:
    """A scheduler that speaks TLS alone, with workers as soon as they are asked for; both in a folder of their own."""
    pytest.importorskip("cryptography", reason="certificates are made with the extra [cluster]")
    folder = tmp_path_factory.mktemp("dask")
    made = Security.temporary()
    certificate, key = folder / "cert.pem", folder / "key.pem"
    certificate.write_text(made.tls_client_cert)
    key.write_text(made.tls_client_key)
    shared = ["--host", "127.0.0.1", "--no-dashboard", "--tls-ca-file", str(certificate)]
    shared += ["--tls-cert", str(certificate), "--tls-key", str(key)]
    started = []

    def start(*words: str) -> None:
        with (folder / f"{len(started)}.log").open("w") as log:
            started.append(subprocess.Popen([sys.executable, "-m", "dask", *words, *shared], cwd=folder, stderr=log))

    about = folder / "scheduler.json"
    start("scheduler", "--protocol", "tls", "--port", "0", "--scheduler-file", str(about))
    while not about.exists() and started[0].poll() is None:
        time.sleep(0.05)
    yield Scheduler(
        json.loads(about.read_text())["address"],
        {
            "distributed.comm.tls.ca-file": str(certificate),
            "distributed.comm.tls.client.cert": str(certificate),
            "distributed.comm.tls.client.key": str(key),
        },
        lambda: start("worker", "--scheduler-file", str(about), "--nthreads", "1", "--no-nanny"),
    )
    for process in reversed(started):
        process.terminate()
        process.wait(timeout=60)


def refused(address: str) -> str:
    with pytest.raises(LivError) as caught:
        list(run_jobs([], scheduler=address))
    assert caught.value.code == "SCHEDULER_UNUSABLE"
    return caught.value.message


def test_ingest_window_and_verify_over_tls(
    livprep: Livprep,
    scheduler: Scheduler,
    phantom_lits: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The store is named from a folder in which no worker is; the workers come late, which is told of."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pipeline, "WORKERS_S", 0.2)
    monkeypatch.setattr(pipeline, "_say_if_none_starts", _starting(scheduler, pipeline._say_if_none_starts))
    with dask.config.set(scheduler.settings):
        for words in (["ingest", phantom_lits], ["window", "--wl", 40, "--ww", 220], ["verify"]):
            outcome = livprep(*words, "--store", "far.zarr", "--scheduler", scheduler.address)
            assert outcome.code == 0, outcome
    assert "the scheduler has had no worker for" in caplog.text
    livprep("ingest", phantom_lits, "--store", "here.zarr", "--workers", 1)
    livprep("window", "--wl", 40, "--ww", 220, "--store", "here.zarr", "--workers", 1)
    assert tree_hash(tmp_path / "far.zarr") == tree_hash(tmp_path / "here.zarr")


def _starting(scheduler: Scheduler, say: Callable[..., None]) -> Callable[..., None]:
    """Say it first, then have workers start, once."""
    waiting = [scheduler.start_workers]

    def call(*words: Any) -> None:
        say(*words)
        if waiting:
            waiting.pop()()

    return call


def test_a_client_without_credentials_is_told_which(livprep: Livprep, scheduler: Scheduler, tmp_path: Path) -> None:
    assert "TLS asks for credentials, Dask has none here" in refused(scheduler.address)
    outcome = livprep("verify", "--store", tmp_path, "--scheduler", scheduler.address)
    assert outcome.code == 2  # no store: said before any scheduler is asked


def test_wrong_credentials_and_none_where_tls_is_spoken_end_soon(
    scheduler: Scheduler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "SCHEDULER_S", 1)
    other = Security.temporary()
    files = {"ca-file": other.tls_ca_file, "client.cert": other.tls_client_cert, "client.key": other.tls_client_key}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with dask.config.set({f"distributed.comm.tls.{name}": str(tmp_path / name) for name in files}):
        assert "CERTIFICATE_VERIFY_FAILED" in refused(scheduler.address)
    assert "no Dask scheduler answers" in refused(scheduler.address.replace("tls:", "tcp:"))


def test_a_scheduler_that_is_lost_is_said(tmp_path: Path) -> None:
    """Its futures are cancelled then, which is no fault of a case and no defect."""
    about = tmp_path / "scheduler.json"
    words = ["scheduler", "--host", "127.0.0.1", "--no-dashboard", "--port", "0", "--scheduler-file", str(about)]
    process = subprocess.Popen([sys.executable, "-m", "dask", *words], cwd=tmp_path, stderr=subprocess.DEVNULL)
    while not about.exists() and process.poll() is None:
        time.sleep(0.05)
    try:
        with Client(json.loads(about.read_text())["address"]) as client:
            results = pipeline._submit(client, [SimpleNamespace(name="lits-028")], str, "first")
            threading.Timer(0.3, process.kill).start()
            with pytest.raises(LivError, match="connection to the scheduler was lost") as caught:
                next(results)
        assert caught.value.code == "SCHEDULER_UNUSABLE"
    finally:
        process.kill()
        process.wait(timeout=60)


@pytest.mark.parametrize("address", ["tcp://{free}", "{free}", "nonsense", "tcp://no.such.host.invalid:1", "x://y:1"])
def test_an_address_without_a_scheduler_is_refused_soon(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "SCHEDULER_S", 0.5)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))  # and does not listen
        text = refused(address.format(free=f"127.0.0.1:{free.getsockname()[1]}"))
    assert "no Dask scheduler answers" in text


def test_what_listens_and_never_answers_is_refused_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "SCHEDULER_S", 0.5)
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        assert "no Dask scheduler answers" in refused(f"tcp://127.0.0.1:{mute.getsockname()[1]}")


@pytest.mark.parametrize(
    ("worker", "scheduler", "said"),
    [
        (PackageNotFoundError("livprep"), package_version(), "worker tcp://b:2 has no livprep"),
        ("0.0.1", package_version(), "worker tcp://b:2 has livprep 0.0.1"),
        (package_version(), PackageNotFoundError("livprep"), "the scheduler has no livprep"),
    ],
)
def test_who_has_not_this_livprep_is_named(worker: object, scheduler: object, said: str) -> None:
    class Client:
        def wait_for_workers(self, count: int) -> None:
            assert count == 1

        def run(self, function: object, *words: str, on_error: str) -> dict[str, object]:
            assert (function, words, on_error) == (version, ("livprep",), "return")
            return {"tcp://a:1": package_version(), "tcp://b:2": worker}

        def run_on_scheduler(self, function: object, *words: str) -> object:
            if isinstance(scheduler, Exception):
                raise scheduler
            return scheduler

    with pytest.raises(LivError, match=f"{said}, expected") as caught:
        pipeline._check_foreign(Client())
    assert caught.value.code == "SCHEDULER_UNUSABLE"
