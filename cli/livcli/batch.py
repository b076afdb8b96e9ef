"""Batch scripts of SLURM, PBS and LSF for one command line: pure text, nothing is run here.

Sources: sbatch(1), scontrol(1); PBS Professional User's Guide, chapters 4 and 8; IBM Spectrum LSF, bsub options
-J, -Q, -wa, -wt.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from livprep.errors import UsageError

System = Literal["slurm", "pbs", "lsf"]

WARNING_S = 120
"""The batch system sends USR2 so long before the time limit; ingest and fit end within 25 s."""
AGAIN = 75
"""Exit code of a command that was stopped by USR1 or USR2 and is to be run again (EX_TEMPFAIL)."""
INDEX = {"slurm": "SLURM_ARRAY_TASK_ID", "pbs": "PBS_ARRAY_INDEX", "lsf": "LSB_JOBINDEX"}
"""Variable that holds the task's own number, from 1."""
SUBMIT = {"slurm": ("sbatch",), "pbs": ("qsub",), "lsf": ("bsub",)}
"""Programs that read a script on stdin."""


@dataclass(frozen=True)
class Resources:
    """What a task asks for; None leaves it to the batch system. `tasks` above 1 makes an array."""

    tasks: int = 1
    time_s: int | None = None
    memory_mib: int | None = None
    cpus: int | None = None
    gpus: int | None = None


@dataclass(frozen=True)
class Work:
    """A command line for a batch job.

    Parameters
    ----------
    name
        Job name: letters, digits and dashes.
    words
        Program and arguments, each taken literally; paths absolute.
    folder
        Absolute folder to run in.
    again
        Exit 75 puts the job back into the queue: the shell stays beside the program and hands signals on.
    launcher
        Words before the program that start it several times, as torchrun's; signals then go to its children.
    """

    name: str
    words: tuple[str, ...]
    folder: str
    again: bool = False
    launcher: tuple[str, ...] = ()


_PBS_NAME = 15
"""Letters that qsub takes as a name in Torque and in PBS Professional before 19."""


def script(system: System, work: Work, resources: Resources) -> str:
    """The batch script of `system`; an array where there are several tasks, each with its `--part I/N`.

    Raises
    ------
    UsageError
        USAGE: the time limit leaves nothing before the warning.
    """
    if resources.time_s is not None and resources.time_s <= WARNING_S:
        raise UsageError(
            "USAGE", f"--time: {resources.time_s} s, expected more than {WARNING_S} s, see `submit --help`"
        )
    words = shlex.join([*work.launcher, *work.words])
    if resources.tasks > 1:
        # N is written out: a task that is run again alone finds no count of tasks in its environment.
        words += f' --part "${INDEX[system]}/{resources.tasks}"'
    lines = ["#!/bin/bash", *_directives(system, work, resources), "set -u", f"cd {shlex.quote(work.folder)} || exit 2"]
    warned = system == "pbs" and resources.time_s is not None  # PBS warns nobody; the others send USR2 themselves
    alarm_s = resources.time_s - WARNING_S if warned and resources.time_s is not None else None
    if work.again:
        lines += [*_staying(words, bool(work.launcher), alarm_s), *_requeue(system)]
    elif alarm_s is not None:
        lines += [f"exec timeout --preserve-status --signal=USR2 {alarm_s} {words}"]
    else:
        lines += [f"exec {words}"]
    return "\n".join(lines) + "\n"


def _directives(system: System, work: Work, resources: Resources) -> Iterator[str]:
    if system == "slurm":
        return _slurm(work, resources)
    return _pbs(work, resources) if system == "pbs" else _lsf(work, resources)


def _slurm(work: Work, wanted: Resources) -> Iterator[str]:
    array = wanted.tasks > 1
    yield f"#SBATCH --job-name={work.name}"
    if array:
        yield f"#SBATCH --array=1-{wanted.tasks}"
    yield f"#SBATCH --output={work.name}-{'%A_%a' if array else '%j'}.log"
    yield "#SBATCH --open-mode=append"
    yield "#SBATCH --requeue"
    yield f"#SBATCH --signal=B:USR2@{WARNING_S}"
    yield "#SBATCH --nodes=1"
    yield "#SBATCH --ntasks=1"
    if wanted.time_s is not None:
        yield f"#SBATCH --time={_clock(wanted.time_s)}"
    if wanted.memory_mib is not None:
        yield f"#SBATCH --mem={wanted.memory_mib}M"
    if wanted.cpus is not None:
        yield f"#SBATCH --cpus-per-task={wanted.cpus}"
    if wanted.gpus:
        yield f"#SBATCH --gpus-per-node={wanted.gpus}"


def _pbs(work: Work, wanted: Resources) -> Iterator[str]:
    yield f"#PBS -N {work.name[:_PBS_NAME]}"
    if wanted.tasks > 1:
        yield f"#PBS -J 1-{wanted.tasks}"
    yield "#PBS -j oe"
    yield "#PBS -r y"
    if wanted.time_s is not None:
        yield f"#PBS -l walltime={_clock(wanted.time_s)}"
    select = f"#PBS -l select=1:ncpus={wanted.cpus or 1}"
    if wanted.memory_mib is not None:
        select += f":mem={wanted.memory_mib}mb"
    yield select + (f":ngpus={wanted.gpus}" if wanted.gpus else "")


def _lsf(work: Work, wanted: Resources) -> Iterator[str]:
    array = wanted.tasks > 1
    yield f'#BSUB -J "{work.name}{f"[1-{wanted.tasks}]" if array else ""}"'
    yield f"#BSUB -o {work.name}-{'%J_%I' if array else '%J'}.log"
    yield "#BSUB -r"
    yield f'#BSUB -Q "{AGAIN}"'
    if wanted.time_s is not None:
        yield f"#BSUB -W {-(-wanted.time_s // 60)}"
        yield "#BSUB -wa USR2"
        yield f"#BSUB -wt {WARNING_S // 60}"
    yield f"#BSUB -n {wanted.cpus or 1}"
    yield '#BSUB -R "span[hosts=1]"'
    if wanted.memory_mib is not None:
        yield f"#BSUB -M {wanted.memory_mib}MB"
    if wanted.gpus:
        yield f'#BSUB -gpu "num={wanted.gpus}"'


def _staying(words: str, launched: bool, alarm_s: int | None) -> Iterator[str]:
    """Run the program beside the shell, hand signals on, and leave its exit code in `code`.

    bash interrupts `wait` for a trapped signal, so it waits until the program is gone, then asks for its code.
    """
    # A launcher such as torchrun dies of USR2 itself, and does not hand it on.
    kill = 'pkill -USR2 -P "$job"' if launched else 'kill -USR2 "$job"'
    yield "asked="
    yield "job="
    yield f'stop() {{ asked=1; [ -z "$job" ] || {kill} 2>/dev/null || true; }}'
    yield "trap stop USR1 USR2"
    yield "trap 'kill -TERM \"$job\" 2>/dev/null || true' TERM"
    yield "trap 'kill -INT \"$job\" 2>/dev/null || true' INT"
    yield f"{words} &"
    yield "job=$!"
    if alarm_s is not None:
        yield f"{{ sleep {alarm_s} && kill -USR2 $$; }} 2>/dev/null &"
        yield "alarm=$!"
    yield 'while kill -0 "$job" 2>/dev/null; do wait "$job"; done'
    yield "code=0"
    yield 'wait "$job" || code=$?'
    if alarm_s is not None:
        yield 'pkill -P "$alarm" 2>/dev/null || true'
    # A launcher hides the exit code of what it launched, and a program may be asked before it listens.
    yield f'if [ -n "$asked" ] && [ "$code" -ne 0 ]; then code={AGAIN}; fi'


def _requeue(system: System) -> Iterator[str]:
    yield f'if [ "$code" -eq {AGAIN} ]; then'
    if system == "slurm":
        yield '  scontrol requeue "$SLURM_JOB_ID"'
    elif system == "lsf":
        yield '  echo "stopped before the time limit; LSF puts the job back into the queue (bsub -Q)" >&2'
    else:
        yield '  echo "stopped before the time limit; submit this script again to go on" >&2'
    yield "fi"
    yield 'exit "$code"'


def _clock(seconds: int) -> str:
    minutes, second = divmod(seconds, 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours:02d}:{minute:02d}:{second:02d}"


def parse_time_s(text: str) -> int:
    """Seconds of `2h`, `90m`, `1d12h30m`, `2:30:00` or `1-12:00:00`; ValueError for anything else."""
    units = re.fullmatch(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?", text)
    clock = re.fullmatch(r"(?:(\d+)-)?(\d+):([0-5]\d)(?::([0-5]\d))?", text)
    found = units if units and any(units.groups()) else clock
    if found is None:
        raise ValueError(f"{text!r} is no time such as 2h, 1d12h or 2:30:00")
    days, hours, minutes, seconds = (int(part or 0) for part in found.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


def parse_memory_mib(text: str) -> int:
    """MiB of `8G`, `512M` or `1.5T`, in powers of 1024; ValueError for anything else."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([MGT])(?:i?B)?", text, re.IGNORECASE)
    if found is None or float(found[1]) <= 0:
        raise ValueError(f"{text!r} is no memory such as 512M, 8G or 1.5T")
    return int(float(found[1]) * 1024 ** "MGT".index(found[2].upper()))
