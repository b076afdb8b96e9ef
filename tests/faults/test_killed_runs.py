"""Runs that are killed, stopped or run at once: nothing half done is ever visible, running again is safe."""

from __future__ import annotations

import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from building import tree_hash

from livprep.store import is_store, layout, open_store, staging_entries

COMMAND = [sys.executable, "-c", "from livcli.livprep_main import main; main()"]

DIES_AT = """
import itertools, os, pathlib, sys
step, nth, when = sys.argv.pop(1).split(":")
def dying(original, count=itertools.count(1)):
    def call(*arguments, **options):
        last = next(count) == int(nth)
        if last and when == "before":
            os._exit(9)
        result = original(*arguments, **options)
        if last:
            os._exit(9)
        return result
    return call
owner = os if step == "fsync" else pathlib.Path
setattr(owner, step, dying(getattr(owner, step)))
from livcli.livprep_main import main
main()
"""
"""The program, killed before or after its n-th fsync, rename, replacement or new folder."""


def start(*arguments: object, command: list[str] | None = None, own_group: bool = False) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*(command or COMMAND), *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        process_group=0 if own_group else None,
        # A shell that runs the tests in its background ignores SIGINT, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def ingest(sources: Path, store: Path, *options: object) -> tuple[object, ...]:
    return ("ingest", sources, "--store", store, "--workers", 1, *options)


def window(store: Path, *options: object) -> tuple[object, ...]:
    return ("window", "--wl", 40, "--ww", 220, "--store", store, "--workers", 1, *options)


@pytest.fixture(scope="module")
def undisturbed(phantom_lits: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """Sources, and the tree hash of a store that nobody disturbed, ingested and windowed."""
    store = tmp_path_factory.mktemp("undisturbed") / "store"
    for arguments in (ingest(phantom_lits, store), window(store)):
        code, _, err = finish(start(*arguments))
        assert code == 0, err
    return phantom_lits, tree_hash(store)


def nothing_half_published(store: Path) -> None:
    """Each visible case and channel is whole to the byte."""
    if not is_store(store):
        return
    for case in open_store(store).values():
        for component, manifest in case.manifests().items():
            for name, facts in manifest["files"].items():
                path = case.path / component / name
                assert (path.stat().st_size, layout.file_sha256(path)) == (facts["size"], facts["sha256"])
        case.read_hu()
        for name in case.window_names:
            case.read_window(name)


def resumed(sources: Path, store: Path) -> dict[str, str]:
    """The tree after running both commands to their end and collecting what is dead."""
    for arguments in (ingest(sources, store), window(store), ("gc", "--store", store)):
        code, _, err = finish(start(*arguments))
        assert code == 0, err
    assert staging_entries(store) == []
    return tree_hash(store)


def killed_at_random(sources: Path, store: Path, kills: int, seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(kills):
        arguments = ingest(sources, store) if rng.random() < 0.7 or not is_store(store) else window(store)
        process = start(*arguments)
        time.sleep(rng.uniform(0.3, 2.0))
        process.kill()
        finish(process)
        nothing_half_published(store)


def test_killed_at_random_times_and_resumed(undisturbed: tuple[Path, dict[str, str]], tmp_path: Path) -> None:
    sources, expected = undisturbed
    killed_at_random(sources, tmp_path / "store", kills=3, seed=1)
    assert resumed(sources, tmp_path / "store") == expected


@pytest.mark.nightly
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", range(20))
def test_killed_ten_times_at_random_and_resumed(
    undisturbed: tuple[Path, dict[str, str]], tmp_path: Path, seed: int
) -> None:
    sources, expected = undisturbed
    killed_at_random(sources, tmp_path / "store", kills=10, seed=seed)
    assert resumed(sources, tmp_path / "store") == expected


def killed_at(command: str, step: str, undisturbed: tuple[Path, dict[str, str]], store: Path) -> None:
    sources, expected = undisturbed
    dying = [sys.executable, "-c", DIES_AT, step]
    if command == "window":
        assert finish(start(*ingest(sources, store)))[0] == 0
    arguments = ingest(sources, store) if command == "ingest" else window(store)
    code, _, err = finish(start(*arguments, command=dying))
    assert code == 9, err
    nothing_half_published(store)
    assert resumed(sources, store) == expected


@pytest.mark.parametrize(
    ("command", "step"),
    [
        ("ingest", "mkdir:2:after"),
        ("ingest", "replace:2:before"),
        ("ingest", "rename:2:after"),
        ("window", "rename:1:after"),
    ],
)
def test_killed_at_chosen_steps_and_resumed(
    undisturbed: tuple[Path, dict[str, str]], tmp_path: Path, command: str, step: str
) -> None:
    killed_at(command, step, undisturbed, tmp_path / "store")


STEPS = [("ingest", f"rename:{k}:{when}") for k in (1, 2, 3) for when in ("before", "after")]
STEPS += [("window", f"rename:{k}:{when}") for k in (1, 2, 3) for when in ("before", "after")]
STEPS += [("ingest", f"replace:{k}:{when}") for k in range(1, 60, 5) for when in ("before", "after")]
STEPS += [("window", f"replace:{k}:before") for k in range(1, 12)]
STEPS += [("ingest", f"mkdir:{k}:after") for k in range(1, 40, 3)]
STEPS += [("ingest", f"fsync:{k}:before") for k in range(1, 290, 15)]
STEPS += [("window", f"fsync:{k}:before") for k in range(1, 90, 9)]


@pytest.mark.nightly
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("command", "step"), STEPS)
def test_killed_at_many_steps_and_resumed(
    undisturbed: tuple[Path, dict[str, str]], tmp_path: Path, command: str, step: str
) -> None:
    killed_at(command, step, undisturbed, tmp_path / "store")


def killed_while_replacing(
    options: tuple[str, ...], step: str, undisturbed: tuple[Path, dict[str, str]], store: Path
) -> None:
    """Killed in `ingest --replace`, channels are never lost: running ingest again alone brings all of them back."""
    sources, expected = undisturbed
    for arguments in (ingest(sources, store), window(store)):
        assert finish(start(*arguments))[0] == 0
    dying = [sys.executable, "-c", DIES_AT, step]
    code, _, err = finish(start(*ingest(sources, store, "--replace", *options), command=dying))
    assert code == 9, err
    nothing_half_published(store)
    if not options:
        assert all(case.window_names == ["wl40_ww220"] for case in open_store(store).values())
    code, _, err = finish(start(*ingest(sources, store, "--replace", *options)))
    assert code == 0, err
    assert [case.window_names for case in open_store(store).values()] == [["wl40_ww220"]] * 3
    assert options or tree_hash(store) == expected


@pytest.mark.parametrize(
    ("options", "step"),
    [
        ((), "fsync:60:before"),
        (("--profile", "small"), "rename:2:after"),
        pytest.param(("--profile", "small"), "replace:9:before", marks=pytest.mark.nightly),
    ],
)
def test_killed_while_replacing_no_channel_is_lost(
    undisturbed: tuple[Path, dict[str, str]], tmp_path: Path, options: tuple[str, ...], step: str
) -> None:
    killed_while_replacing(options, step, undisturbed, tmp_path / "store")


REPLACING = [f"fsync:{k}:before" for k in range(1, 400, 40)] + [f"replace:{k}:after" for k in range(1, 80, 12)]


@pytest.mark.nightly
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("step", [*REPLACING, *(f"rename:{k}:after" for k in range(1, 4))])
@pytest.mark.parametrize("options", [(), ("--profile", "small")])
def test_killed_at_many_steps_of_replacing(
    undisturbed: tuple[Path, dict[str, str]], tmp_path: Path, options: tuple[str, ...], step: str
) -> None:
    if not options and step.startswith("rename"):
        pytest.skip("names are exchanged, not renamed")
    killed_while_replacing(options, step, undisturbed, tmp_path / "store")


def wait_for(condition: object, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


STOPPING = {signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGUSR1: 75, signal.SIGUSR2: 75}
STOP_WITHIN_S = 25
"""SLURM kills 30 s after TERM (KillWait)."""


def stopped(
    sources: Path, store: Path, number: signal.Signals, workers: int, after_s: float | None, *, everyone: bool = False
) -> None:
    """Stop an ingest by a signal, to all of its processes or the first alone, and look at what is left."""
    process = start(*ingest(sources, store)[:-1], workers, own_group=everyone)
    if after_s is None:
        wait_for(lambda: any((store / ".staging").glob("*.*")) or process.poll() is not None)
    else:
        time.sleep(after_s)
    family = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    began = time.monotonic()
    if everyone:
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    ended, _, err = finish(process)
    assert time.monotonic() - began < STOP_WITHIN_S
    assert ended in ((STOPPING[number],) if after_s is None else (STOPPING[number], 0)), err
    assert "Traceback" not in err, err
    assert "Exception ignored" not in err, err
    if ended == 75:
        assert f"livprep: INTERRUPTED: stopped by {number.name}. Run the same command again" in err
    assert not is_store(store) or staging_entries(store) == []
    wait_for(lambda: not any(member.is_running() and member.status() != "zombie" for member in family))
    nothing_half_published(store)


@pytest.fixture(scope="module")
def six_cases(phantom_lits: Path, phantom_ircadb: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    sources = tmp_path_factory.mktemp("six") / "in"
    shutil.copytree(phantom_lits, sources)
    return shutil.copytree(phantom_ircadb, sources, dirs_exist_ok=True)


@pytest.mark.parametrize(
    ("number", "workers"),
    [(signal.SIGTERM, 1), (signal.SIGINT, 2), (signal.SIGUSR1, 2), (signal.SIGUSR2, 1)],  # every pair: nightly
)
def test_stopped_runs_exit_with_their_code_and_leave_nothing(
    six_cases: Path, tmp_path: Path, number: signal.Signals, workers: int
) -> None:
    stopped(six_cases, tmp_path / "store", number, workers, None)
    finished, _, err = finish(start(*ingest(six_cases, tmp_path / "store")))
    assert finished == 0, err
    assert len(open_store(tmp_path / "store")) == 6


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_every_process_of_a_run_leaves_nothing_either(
    six_cases: Path, tmp_path: Path, number: signal.Signals
) -> None:
    """As a terminal's Ctrl-C, or SLURM at the end of a job."""
    stopped(six_cases, tmp_path / "store", number, 2, None, everyone=True)


@pytest.mark.nightly
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("number", STOPPING)
def test_stopped_twenty_times_at_random(six_cases: Path, tmp_path: Path, number: signal.Signals, workers: int) -> None:
    rng = random.Random(int(number))
    for k in range(20):
        # not before the program listens: it starts in about 0.3 s
        stopped(six_cases, tmp_path / f"store-{k}", number, workers, rng.uniform(0.6, 4.0), everyone=bool(k % 2))


def test_a_stopped_window_leaves_nothing(undisturbed: tuple[Path, dict[str, str]], tmp_path: Path) -> None:
    sources, expected = undisturbed
    store = tmp_path / "store"
    assert finish(start(*ingest(sources, store)))[0] == 0
    process = start(*window(store))
    wait_for(lambda: any((store / ".staging").glob("*.wl40*")) or process.poll() is not None)
    process.send_signal(signal.SIGUSR2)
    ended, _, err = finish(process)
    assert ended == 75, err
    assert staging_entries(store) == []
    nothing_half_published(store)
    assert resumed(sources, store) == expected


def test_two_ingests_at_once_make_one_store(undisturbed: tuple[Path, dict[str, str]], tmp_path: Path) -> None:
    sources, expected = undisturbed
    store = tmp_path / "store"
    for code, _, err in [finish(process) for process in [start(*ingest(sources, store)) for _ in range(3)]]:
        assert code == 0, err
    for code, _, err in [finish(process) for process in [start(*window(store)) for _ in range(2)]]:
        assert code == 0, err
    assert staging_entries(store) == []
    assert tree_hash(store) == expected


def test_a_reader_of_a_pipe_may_go_away(small_store: Path) -> None:
    shell = f"{shlex.join([*COMMAND, 'info', '--store', str(small_store), '--json'])} | head -n 1"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", shell], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.stdout.count("\n") == 1
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


def test_no_variable_of_the_environment_is_needed(small_store: Path) -> None:
    done = subprocess.run(
        [*COMMAND, "info", "--store", str(small_store)],
        env={"PATH": os.environ["PATH"], "HOME": "/nonexistent", "LC_ALL": "C"},
        capture_output=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
