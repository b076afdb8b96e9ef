"""`livprep submit`: the scripts to the letter, what bash makes of them, and what is refused."""

from __future__ import annotations

import importlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from livcli import livprep_main, livtrain_main
from livcli.batch import Resources, Work, parse_memory_mib, parse_time_s, script
from livcli.livprep_submit import _OWN, hand_over, prepare_work, submit
from livcli.options import Part
from livprep.errors import UsageError
from livprep.store import open_store

INGEST = Work("livprep-ingest", ("/env/bin/livprep", "ingest", "/data/3D ircadb", "--store", "/data/s.zarr"), "/data")
FIT = Work("livtrain-fit", ("/env/bin/livtrain", "fit", "--resume"), "/data", again=True)
SYSTEMS = ("slurm", "pbs", "lsf")

SLURM_ARRAY = """\
#!/bin/bash
#SBATCH --job-name=livprep-ingest
#SBATCH --array=1-4
#SBATCH --output=livprep-ingest-%A_%a.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR2@120
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --time=02:30:00
#SBATCH --mem=8192M
#SBATCH --cpus-per-task=2
set -u
cd /data || exit 2
exec /env/bin/livprep ingest '/data/3D ircadb' --store /data/s.zarr --part "$SLURM_ARRAY_TASK_ID/4"
"""

SLURM_FIT = """\
#!/bin/bash
#SBATCH --job-name=livtrain-fit
#SBATCH --output=livtrain-fit-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR2@120
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --gpus-per-node=1
set -u
cd /data || exit 2
asked=
job=
stop() { asked=1; [ -z "$job" ] || kill -USR2 "$job" 2>/dev/null || true; }
trap stop USR1 USR2
trap 'kill -TERM "$job" 2>/dev/null || true' TERM
trap 'kill -INT "$job" 2>/dev/null || true' INT
/env/bin/livtrain fit --resume &
job=$!
while kill -0 "$job" 2>/dev/null; do wait "$job"; done
code=0
wait "$job" || code=$?
if [ -n "$asked" ] && [ "$code" -ne 0 ]; then code=75; fi
if [ "$code" -eq 75 ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
"""

PBS_ARRAY = """\
#!/bin/bash
#PBS -N livprep-ingest
#PBS -J 1-4
#PBS -j oe
#PBS -r y
#PBS -l walltime=02:30:00
#PBS -l select=1:ncpus=2:mem=8192mb
set -u
cd /data || exit 2
exec timeout --preserve-status --signal=USR2 8880 /env/bin/livprep ingest '/data/3D ircadb' --store /data/s.zarr \
--part "$PBS_ARRAY_INDEX/4"
"""

LSF_ARRAY = """\
#!/bin/bash
#BSUB -J "livprep-ingest[1-4]"
#BSUB -o livprep-ingest-%J_%I.log
#BSUB -r
#BSUB -Q "75"
#BSUB -W 150
#BSUB -wa USR2
#BSUB -wt 2
#BSUB -n 2
#BSUB -R "span[hosts=1]"
#BSUB -M 8192MB
set -u
cd /data || exit 2
exec /env/bin/livprep ingest '/data/3D ircadb' --store /data/s.zarr --part "$LSB_JOBINDEX/4"
"""


def refused(message: str, *words: str, folder: Path | None = None, tasks: int | None = None) -> None:
    with pytest.raises(click.UsageError, match=message):
        prepare_work(words, folder or Path.cwd(), 0, tasks)


# --- the text ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("system", "golden"), [("slurm", SLURM_ARRAY), ("pbs", PBS_ARRAY), ("lsf", LSF_ARRAY)])
def test_an_array_writes_out_the_number_of_parts(system: Any, golden: str) -> None:
    assert script(system, INGEST, Resources(tasks=4, time_s=9000, memory_mib=8192, cpus=2)) == golden


def test_fit_stays_under_a_shell_that_asks_for_a_requeue() -> None:
    assert script("slurm", FIT, Resources(gpus=1)) == SLURM_FIT


def test_one_task_is_no_array() -> None:
    for system in SYSTEMS:
        text = script(system, INGEST, Resources())
        assert "--part" not in text
        assert text.endswith("exec /env/bin/livprep ingest '/data/3D ircadb' --store /data/s.zarr\n")


def test_pbs_is_given_an_alarm_of_its_own_and_lsf_requeues_by_code() -> None:
    text = script("pbs", FIT, Resources(time_s=3600))
    assert "{ sleep 3480 && kill -USR2 $$; }" in text
    assert "submit this script again" in text
    assert '#BSUB -Q "75"' in script("lsf", FIT, Resources(time_s=3600))
    assert "sleep" not in script("pbs", FIT, Resources())


def test_several_gpus_run_under_torchrun_whose_children_are_told() -> None:
    work = Work("livtrain-fit", ("/b/livtrain", "fit"), "/d", True, ("torchrun", "--nproc-per-node=2", "--no-python"))
    text = script("slurm", work, Resources(gpus=2))
    assert "torchrun --nproc-per-node=2 --no-python /b/livtrain fit &\n" in text
    assert 'pkill -USR2 -P "$job"' in text
    assert "#SBATCH --gpus-per-node=2\n" in text


def test_a_limit_shorter_than_the_warning_is_refused() -> None:
    with pytest.raises(UsageError, match="--time: 120 s, expected more than 120 s"):
        script("slurm", INGEST, Resources(time_s=120))


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("2h", 7200),
        ("90m", 5400),
        ("1d12h", 129600),
        ("45s", 45),
        ("2:30:00", 9000),
        ("2:30", 9000),
        ("1-0:00:01", 86401),
    ],
)
def test_times(text: str, seconds: int) -> None:
    assert parse_time_s(text) == seconds


@pytest.mark.parametrize("text", ["", "2", "h", "2x", "1:60:00", "-1h"])
def test_no_times(text: str) -> None:
    with pytest.raises(ValueError, match="is no time"):
        parse_time_s(text)


def test_memory() -> None:
    assert [parse_memory_mib(text) for text in ("512M", "8G", "1.5T", "8gb", "8GiB")] == [
        512, 8192, 1572864, 8192, 8192,
    ]  # fmt: skip
    for text in ("", "8", "G", "0G", "8K"):
        with pytest.raises(ValueError, match="is no memory"):
            parse_memory_mib(text)


# --- what bash makes of it --------------------------------------------------------------------------------------

WORDS = st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)), max_size=12), max_size=4)


@pytest.fixture(scope="module")
def echo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A program that prints its words, in a folder whose name needs quoting."""
    path = tmp_path_factory.mktemp("a b'c\"d $e") / "say it"
    path.write_text('#!/bin/bash\nprintf \'%s\\0\' "$PWD" "$@"\n')
    path.chmod(0o755)
    return path


@given(words=WORDS, system=st.sampled_from(SYSTEMS), again=st.booleans())
def test_every_word_arrives_as_it_was(words: list[str], system: Any, again: bool, echo: Path) -> None:
    work = Work("x", (str(echo), *words), str(echo.parent), again)
    done = subprocess.run(
        ["bash"], input=script(system, work, Resources()).encode(), capture_output=True, check=True, timeout=60
    )
    assert done.stdout.decode().split("\0")[:-1] == [str(echo.parent), *words]


@given(words=WORDS, system=st.sampled_from(SYSTEMS), again=st.booleans(), time_s=st.sampled_from([None, 600]))
def test_bash_reads_every_script(words: list[str], system: Any, again: bool, time_s: int | None) -> None:
    text = script(system, Work("x", ("/p", *words), "/d", again), Resources(3, time_s, 1, 1, 1))
    done = subprocess.run(["bash", "-n"], input=text.encode(), capture_output=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, b"")


PROGRAM = """import os, signal, sys, time
def stop(number, frame):
    os._exit({{signal.SIGUSR2: {code}, signal.SIGTERM: 143}}[number])
for number in (signal.SIGUSR2, signal.SIGTERM):
    signal.signal(number, stop)
open("ready", "w").close()
time.sleep({seconds})
sys.exit({end})
"""


def run_fit(
    folder: Path, *, code: int = 75, seconds: float = 60, end: int = 0, number: int | None = signal.SIGUSR2, **more: Any
) -> tuple[int, str]:
    """Run a fit script whose program ends as told; the shell's exit code and what scontrol was asked."""
    program, tool = folder / "program", folder / "scontrol"
    (folder / "program.py").write_text(PROGRAM.format(code=code, seconds=seconds, end=end))
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" program.py\n')  # its path may hold a space
    tool.write_text('#!/bin/bash\necho "$@" >> asked\n')
    for path in (program, tool):
        path.chmod(0o755)
    text = script("slurm", Work("x", (str(program),), str(folder), True, **more), Resources())
    setting = os.environ | {"PATH": f"{folder}:{os.environ['PATH']}", "SLURM_JOB_ID": "17"}
    shell = subprocess.Popen(["bash", "-c", text], env=setting)
    while not (folder / "ready").exists() and shell.poll() is None:
        time.sleep(0.02)
    if number is not None:
        shell.send_signal(number)
    ended = shell.wait(timeout=60)
    return ended, (folder / "asked").read_text() if (folder / "asked").exists() else ""


def test_a_warned_fit_saves_and_is_requeued(tmp_path: Path) -> None:
    assert run_fit(tmp_path) == (75, "requeue 17\n")


def test_a_fit_that_is_done_is_not_requeued(tmp_path: Path) -> None:
    assert run_fit(tmp_path, seconds=0.3, number=None) == (0, "")


def test_a_fit_that_ends_by_itself_with_75_is_requeued(tmp_path: Path) -> None:
    assert run_fit(tmp_path, seconds=0.3, number=None, end=75) == (75, "requeue 17\n")


def test_a_fit_that_fails_is_not_requeued(tmp_path: Path) -> None:
    assert run_fit(tmp_path, seconds=0.3, number=None, end=70) == (70, "")


def test_a_terminated_fit_is_not_requeued(tmp_path: Path) -> None:
    assert run_fit(tmp_path, number=signal.SIGTERM) == (143, "")


@pytest.mark.skipif(shutil.which("pkill") is None, reason="pkill (procps) is not there")
def test_what_a_launcher_hides_is_told_by_the_warning(tmp_path: Path) -> None:
    """As torchrun: dies of USR2 itself, and ends with 1 whatever its children end with."""
    launcher = tmp_path / "launcher"
    launcher.write_text('#!/bin/bash\n"$@" &\nwait $! || exit 1\n')
    launcher.chmod(0o755)
    assert run_fit(tmp_path, launcher=(str(launcher),)) == (75, "requeue 17\n")


# --- the command ------------------------------------------------------------------------------------------------


def call(*words: str) -> Any:
    return CliRunner().invoke(submit, words, standalone_mode=False, catch_exceptions=True)


def own(program: str) -> str:
    """How a script calls one of our programs, quoted where its place asks for it."""
    return shlex.quote(str(Path(sys.executable).parent / program))


def last_line(outcome: Any) -> str:
    return str(outcome.output.rstrip("\n").splitlines()[-1])


def test_paths_become_absolute_and_the_store_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LIVPREP_STORE", "my store.zarr")
    line = last_line(call("--tasks", "3", "ingest", "in put/", "../other", "--cases", "ircadb-*"))
    assert line.endswith(
        f"{own('livprep')} ingest '{tmp_path}/in put' {tmp_path.parent}/other --store '{tmp_path}/my store.zarr' "
        "--cases 'ircadb-*' --part \"$SLURM_ARRAY_TASK_ID/3\""
    )
    assert line.startswith("exec ")


def test_options_of_every_kind_are_spelled_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "scan.nii").touch()
    words = ("predict", "scan.nii", "lits-000", "-o", "out", "--liver", "a", "--liver", "b", "--no-keep-largest", "-vv")
    line = last_line(call("livtrain", *words, "--store", "s3://bucket/liver"))
    assert line.endswith(
        f"{own('livtrain')} predict {tmp_path}/scan.nii lits-000 --out {tmp_path}/out --store s3://bucket/liver "
        f"--liver {tmp_path}/a --liver {tmp_path}/b --no-keep-largest --verbose --verbose"
    )


def test_a_folder_named_like_a_value_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("liver", "nifti"):
        (tmp_path / name).mkdir()
    assert "--stage liver" in call("fit", "--stage", "liver").output
    assert f"{own('livprep')} export nifti {tmp_path}/dest " in call("export", "nifti", "dest").output


def test_fit_resumes_and_several_gpus_take_torchrun() -> None:
    one, two = call("fit").output, call("--gpus", "2", "livtrain", "fit", "--resume").output
    assert [text.count("--resume") for text in (one, two)] == [1, 1]
    assert "torchrun" not in one
    # without torch beside this Python, the job's own PATH decides
    beside = Path(sys.executable).with_name("torchrun").exists()
    launcher = own("torchrun") if beside else shlex.quote(shutil.which("torchrun") or "torchrun")
    assert f"{launcher} --standalone --nproc-per-node=2 --no-python {own('livtrain')} " in two


def test_a_sweep_is_one_cell_a_task(monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = click.Command("sweep", params=[click.Option([name]) for name in ("--wl", "--ww", "--part")])
    monkeypatch.setitem(livtrain_main.COMMANDS, "sweep", ("stand_in:sweep", ""))
    monkeypatch.setitem(sys.modules, "stand_in", SimpleNamespace(sweep=sweep))
    assert "#SBATCH --array=1-9\n" in call("sweep", "--wl", "30,40,50", "--ww", "200:240:20").output
    assert "#SBATCH --array=1-2\n" in call("--tasks", "2", "sweep", "--wl=30,40,50", "--ww=200:240:20").output
    assert "--array" not in call("sweep").output


def test_what_cannot_be_submitted_is_refused(tmp_path: Path) -> None:
    refused("'nonsense' is no command of livprep or livtrain", "nonsense")
    refused("'fit' is no command of livprep to submit", "livprep", "fit")
    refused("'' is no command of livtrain to submit", "livtrain")
    refused("'submit' is no command", "submit", "ingest", "x")
    refused(r"ingest: SRC\.\.\. is missing", "ingest")
    refused("No such option", "ingest", "x", "--nonsense")
    refused("--help is for a terminal", "ingest", "--help")
    refused("info has no --part: it cannot be divided into 2 tasks", "info", tasks=2)
    refused("--part is what --tasks divides into", "ingest", "x", "--part", "1/2", tasks=2)
    refused("unexpected argument 'b'", "export", "nifti", "a", "b")


def test_the_program_prints_the_script(livprep: Callable[..., Any], tmp_path: Path) -> None:
    outcome = livprep("submit", "--tasks", 2, "--mem", "4G", "ingest", tmp_path)
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out.startswith("#!/bin/bash\n#SBATCH --job-name=livprep-ingest\n#SBATCH --array=1-2\n")
    record = json.loads(livprep("submit", "--tasks", 2, "--mem", "4G", "--json", "ingest", tmp_path).out)
    assert record == {"batch": "slurm", "script": outcome.out}
    assert livprep("submit", "--time", "soon", "ingest", tmp_path).code == 2
    assert livprep("submit", "--time", "1m", "ingest", tmp_path).code == 2


def test_go_hands_the_script_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "sbatch"
    tool.write_text(f"#!/bin/bash\ncat > {tmp_path}/got\necho Submitted batch job 5\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert call("--go", "-q", "info").output == "Submitted batch job 5\n"
    assert (tmp_path / "got").read_text() == call("info").output
    tool.write_text("#!/bin/bash\necho Invalid account >&2\nexit 1\n")
    with pytest.raises(UsageError, match="sbatch refuses the job: Invalid account"):
        hand_over("slurm", "x")
    monkeypatch.setenv("PATH", str(tmp_path / "none"))
    with pytest.raises(UsageError, match="--go: qsub is not there"):
        hand_over("pbs", "x")


QSUB = """#!/bin/bash
# As PBS: each task is a login shell's child in the home folder, with what PBS sets and nothing of the submitter's.
cat > "{folder}/job"
for index in $(sed -n 's/^#PBS -J 1-//p' "{folder}/job" | xargs seq 1); do
  (cd / && env -i HOME=/ PATH=/usr/bin:/bin PBS_ENVIRONMENT=PBS_BATCH PBS_JOBID="7[$index].server" \\
    PBS_ARRAY_INDEX="$index" PBS_O_WORKDIR="{folder}" NCPUS=1 PBS_NODEFILE=/dev/null \\
    bash "{folder}/job" > "{folder}/$index.log" 2>&1)
  echo "$index ended with $?" >> "{folder}/ended"
done
echo "7[].server"
"""


def test_a_pbs_array_does_every_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, phantom_lits: Path, livprep: Callable[..., Any]
) -> None:
    program = tmp_path / "livprep"
    path = shlex.quote(os.pathsep.join(sys.path))
    call_main = "from livcli.livprep_main import main; main()"
    program.write_text(f'#!/bin/sh\nPYTHONPATH={path} exec "{sys.executable}" -c "{call_main}" "$@"\n')
    (tmp_path / "qsub").write_text(QSUB.format(folder=tmp_path))
    for tool in (program, tmp_path / "qsub"):
        tool.chmod(0o755)
    monkeypatch.setattr("livcli.livprep_submit._beside", lambda name: str(tmp_path / name))
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").symlink_to(phantom_lits)
    words = ("--batch", "pbs", "--tasks", 2, "--time", "1h", "--go", "-q", "ingest", "in", "--workers", 1)
    assert livprep("submit", *words).out == "7[].server\n"
    logs = [(tmp_path / f"{index}.log").read_text() for index in (1, 2)]
    assert (tmp_path / "ended").read_text() == "1 ended with 0\n2 ended with 0\n", logs
    assert sorted(open_store(tmp_path / "liver.zarr")) == ["lits-028", "lits-048", "lits-068"]
    assert ["2 cases found" in log for log in logs] == [True, False]


def test_names_are_short_enough_for_older_pbs() -> None:
    work = Work("livtrain-evaluate", ("/p",), "/d")
    assert "#PBS -N livtrain-evalua\n" in script("pbs", work, Resources())


# --- the array's own number -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["SLURM_ARRAY_TASK_ID", "PBS_ARRAY_INDEX", "PBS_ARRAYID", "LSB_JOBINDEX"])
def test_a_part_may_come_from_the_array(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "3")
    assert Part().convert("auto/4", None, None) == (3, 4)
    for index in ("5", "0", "undefined"):
        monkeypatch.setenv(name, index)
        with pytest.raises(click.BadParameter, match="no part I/N"):
            Part().convert("auto/4", None, None)
    monkeypatch.delenv(name)
    with pytest.raises(click.BadParameter, match="no task of a job array"):
        Part().convert("auto/4", None, None)


@pytest.mark.parametrize(
    "line",
    [
        "ingest data --tasks 4 --mem 8G --time 2h",
        "--time 2h ingest data --tasks=4 --mem=8G",
        "ingest --tasks 4 --time 2h data --mem 8G",
    ],
)
def test_options_of_submit_may_stand_behind_the_command(line: str) -> None:
    expected = CliRunner().invoke(submit, ["--tasks", "4", "--mem", "8G", "--time", "2h", "ingest", "data"])
    assert expected.exit_code == 0, expected.output
    assert "#SBATCH --array=1-4" in expected.output
    assert CliRunner().invoke(submit, line.split()).output == expected.output


def test_fits_own_time_limit_stays_fits() -> None:
    found = CliRunner().invoke(submit, ["--time", "3h", "livtrain", "fit", "--time", "2h"]).output
    assert "#SBATCH --time=03:00:00" in found
    assert "--time 2h --resume" in found


def test_no_command_has_an_option_that_submit_takes_from_behind_it() -> None:
    for name, (at, _) in (livprep_main.COMMANDS | livtrain_main.COMMANDS).items():
        if name != "submit":
            module, _, attribute = at.partition(":")
            command = getattr(importlib.import_module(module), attribute)
            assert not {option for param in command.params for option in param.opts} & _OWN.keys(), name
