"""Synthetic patients and a small store, made once a session; the tests that change one take a copy."""

from __future__ import annotations

import logging
import shutil
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import hypothesis
import pytest

hypothesis.settings.register_profile(
    "livprep",
    deadline=None,  # the machine may be shared
    derandomize=True,
    suppress_health_check=[hypothesis.HealthCheck.too_slow, hypothesis.HealthCheck.function_scoped_fixture],
)
hypothesis.settings.load_profile("livprep")

PHANTOM_SEED, PHANTOM_SIZE = 3, 48
IRCADB_NUMBERS = (1, 2, 7)
"""Zipped with seven tumor masks and a cyst; loose with masks of 1; tumor-free with the look-alike `tumor`."""
LITS_NUMBERS = (28, 48, 68)
"""Identity header, the same patient as 3DIRCADb 1; label with another affine; RAS."""


@pytest.fixture(scope="session")
def phantom_ircadb(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with 3Dircadb1.1, .2 and .7 and their catalogue; do not change it."""
    from livprep.synthesis import write_ircadb

    folder = tmp_path_factory.mktemp("phantoms") / "ircadb"
    write_ircadb(folder, IRCADB_NUMBERS, seed=PHANTOM_SEED, size=PHANTOM_SIZE)
    return folder


@pytest.fixture(scope="session")
def phantom_lits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with LiTS volumes 28, 48 and 68 and their catalogue; do not change it."""
    from livprep.synthesis import write_lits

    folder = tmp_path_factory.mktemp("phantoms") / "lits"
    write_lits(folder, LITS_NUMBERS, seed=PHANTOM_SEED, size=PHANTOM_SIZE)
    return folder


@pytest.fixture(scope="session")
def small_store(tmp_path_factory: pytest.TempPathFactory, phantom_ircadb: Path, phantom_lits: Path) -> Path:
    """A store of six phantoms with the windows WL 40 WW 220 and WL 60 WW 140; do not change it."""
    from livprep.cohort import IngestRequest, plan_ingest, plan_windows, run_ingest, run_windows
    from livprep.store import open_store
    from livprep.windows import Window

    path = tmp_path_factory.mktemp("store") / "liver.zarr"
    for folder in (phantom_ircadb, phantom_lits):
        receipts = list(run_ingest(plan_ingest(IngestRequest((folder,), path, workers=1))))
        assert {receipt.status for receipt in receipts} == {"published"}, receipts
    store = open_store(path)
    list(run_windows(store, plan_windows(store, [Window(40, 220), Window(60, 140)]), workers=1))
    return path


@pytest.fixture
def store_copy(small_store: Path, tmp_path: Path) -> Path:
    """A copy of `small_store` that a test may change."""
    return shutil.copytree(small_store, tmp_path / "liver.zarr")


@dataclass(frozen=True)
class Outcome:
    """What a command did: exit code, stdout, stderr."""

    code: int
    out: str
    err: str


@pytest.fixture
def livprep(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Run the console script's entry point in this process."""
    from livcli.livprep_main import main

    def call(*arguments: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["livprep", *map(str, arguments)])
        capsys.readouterr()
        handler, level = signal.getsignal(signal.SIGTERM), logging.getLogger().level
        try:
            with pytest.raises(SystemExit) as stop:
                main()
        finally:
            signal.signal(signal.SIGTERM, handler)
            logging.getLogger().setLevel(level)  # -v is of one command
        captured = capsys.readouterr()
        code = stop.value.code
        return Outcome(code if isinstance(code, int) else 0, captured.out, captured.err)

    return call
