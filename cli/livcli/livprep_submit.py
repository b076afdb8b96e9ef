"""`livprep submit`."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from livcli.options import output_options, say

if TYPE_CHECKING:
    from livcli.batch import System, Work


class Amount(click.ParamType[Any]):
    """A number with a unit, read by a function that raises ValueError."""

    def __init__(self, name: str, parse: str) -> None:
        self.name = name
        self._parse = parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Parse; the module that knows how is imported when it is needed."""
        from livcli import batch

        try:
            return getattr(batch, self._parse)(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


_OWN = {"--tasks": 1, "--mem": 1, "--cpus": 1, "--gpus": 1, "--go": 0}
"""Options of submit that no other command has, with the number of their values."""


class _Submit(click.Command):
    """Takes its own options behind COMMAND too, as long as COMMAND has none of that name (fit has a --time)."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        own = _OWN if "fit" in args else _OWN | {"--time": 1}
        before, behind, rest = list[str](), list[str](), iter(args)
        for word in rest:
            name, has_value, _ = word.partition("=")
            target = before if name in own else behind
            target.append(word)
            if name in own and own[name] and not has_value:
                before += [value for value in (next(rest, None),) if value is not None]
        return super().parse_args(ctx, before + behind)


@click.command(
    cls=_Submit,
    epilog="Example: livprep submit --tasks 16 --time 2h --mem 16G --cpus 4 ingest ircadb/ lits/ | sbatch",
    context_settings={"help_option_names": ["-h", "--help"], "allow_interspersed_args": False},
)
@click.argument("words", nargs=-1, required=True, metavar="COMMAND...", type=click.UNPROCESSED)
@click.option("--batch", type=click.Choice(["slurm", "pbs", "lsf"]), default="slurm", show_default=True, help="System.")
@click.option("--tasks", type=click.IntRange(min=1), help="Tasks of a job array, each with its --part.  [default: 1]")
@click.option("--time", "time_s", type=Amount("2h|2:30:00", "parse_time_s"), help="Time limit of a task.")
@click.option("--mem", "memory_mib", type=Amount("8G", "parse_memory_mib"), help="Memory of a task.")
@click.option("--cpus", type=click.IntRange(min=1), help="Processors of a task.")
@click.option("--gpus", type=click.IntRange(min=0), help="GPUs of a task; fit on several runs under torchrun.")
@click.option("--go", is_flag=True, help="Submit the script instead of printing it.")
@output_options
def submit(
    words: tuple[str, ...],
    batch: System,
    tasks: int | None,
    time_s: int | None,
    memory_mib: int | None,
    cpus: int | None,
    gpus: int | None,
    go: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Print a batch script for a livprep or livtrain command, such as `ingest ircadb/` or `livtrain fit`.

    With --tasks N the job is an array whose tasks take part 1 to N each; one
    that failed may be submitted again alone, as by `sbatch --array=3`. USR2 is sent 120 s before --time ends: ingest
    drops what is in flight, fit saves its step and goes back into the queue (PBS: is to be submitted again).
    """
    from livcli.batch import Resources, script

    work, default_tasks = prepare_work(words, Path.cwd(), gpus or 0, tasks)
    text = script(batch, work, Resources(tasks or default_tasks, time_s, memory_mib, cpus, gpus))
    if not go:
        click.echo(json.dumps({"batch": batch, "script": text}) if as_json else text, nl=as_json)
        return
    answer = hand_over(batch, text)
    say(quiet, f"{work.name}: {tasks or default_tasks} task(s)")
    click.echo(json.dumps({"batch": batch, "answer": answer, "script": text}) if as_json else answer)


def prepare_work(words: Sequence[str], folder: Path, gpus: int, tasks: int | None) -> tuple[Work, int]:
    """Check a command line of ours and spell it out for another place and time.

    Parameters
    ----------
    words
        As typed; the program's name may stand in front.
    folder
        Where it was typed.
    gpus
        GPUs of a task.
    tasks
        Tasks asked for, if any.

    Returns
    -------
    The work, and the tasks that it takes where none were asked for.

    Raises
    ------
    click.UsageError
        There is no such command, or its arguments are wrong, or it cannot be divided as asked.
    """
    from livcli.batch import Work

    program, command, rest = _find(words)
    spelled = list(_spelled_out(command, rest, folder))
    cells = _cells(rest) if command.name == "sweep" else 1
    if (tasks or cells) > 1:
        if "part" not in {param.name for param in command.params}:
            raise click.UsageError(f"{program} {command.name} has no --part: it cannot be divided into {tasks} tasks")
        if "--part" in spelled:
            raise click.UsageError("--part is what --tasks divides into; give one of them")
    training = program == "livtrain" and command.name == "fit"
    if training and "--resume" not in spelled:
        spelled.append("--resume")
    launcher = (_beside("torchrun"), "--standalone", f"--nproc-per-node={gpus}", "--no-python")
    work = Work(
        f"{program}-{command.name}",
        (_beside(program), str(command.name), *spelled),
        str(folder),
        again=training,
        launcher=launcher if training and gpus > 1 else (),
    )
    return work, cells


def _find(words: Sequence[str]) -> tuple[str, click.Command, list[str]]:
    """Program, command and its own words; a command that both programs have is livprep's unless livtrain is named."""
    from livcli.livprep_main import livprep
    from livcli.livtrain_main import livtrain

    groups: dict[str, click.Group] = {"livprep": livprep, "livtrain": livtrain}
    named = words[0] in groups
    name, rest = (words[1] if len(words) > 1 else "", words[2:]) if named else (words[0], words[1:])
    for program in [words[0]] if named else groups:
        command = groups[program].get_command(click.Context(groups[program]), name)
        if command is not None and command.name != "submit":
            return program, command, list(rest)
    raise click.UsageError(f"{name!r} is no command of {words[0] if named else 'livprep or livtrain'} to submit")


def _spelled_out(command: click.Command, words: list[str], folder: Path) -> Iterator[str]:
    """The same arguments with long option names, absolute paths, and the store that is meant here and now."""
    # with its own settings: click keeps the help option that it made first
    context = click.Context(command, info_name=command.name, **command.context_settings)
    values, surplus, _ = command.make_parser(context).parse_args(args=list(words))
    if surplus:
        raise click.UsageError(f"{command.name}: unexpected argument {surplus[0]!r}")
    if any(values.get(str(param.name)) for param in command.get_params(context) if param not in command.params):
        raise click.UsageError(f"{command.name}: --help is for a terminal")
    parameters = sorted(command.params, key=lambda param: isinstance(param, click.Option))  # arguments first
    for param in parameters:
        value = values.get(str(param.name))
        if not isinstance(param, click.Option):
            given = [item for item in (value if isinstance(value, tuple) else (value,)) if isinstance(item, str)]
            if param.required and not given:
                raise click.UsageError(f"{command.name}: {param.make_metavar(context)} is missing")
            is_path = isinstance(param.type, click.Path)
            either = param.nargs == -1 and param.type is click.STRING  # SRC of predict: a path, or a case
            yield from (
                _place(item, folder) if is_path or (either and (folder / item).exists()) else item for item in given
            )
            continue
        if param.name == "store" and value is None:
            value = param.get_default(context)  # of this environment, which the job may not have
        yield from _option(param, value, folder)


def _option(param: click.Option, value: Any, folder: Path) -> Iterator[str]:
    name = max(param.opts, key=len)
    if value is None:
        return
    if param.count:
        yield from [name] * int(value)
    elif param.is_flag:
        yield name if value is not False else max(param.secondary_opts, key=len)
    else:
        for item in value if param.multiple else [value]:
            yield name
            for part in item if isinstance(item, tuple) else (item,):
                yield _place(str(part), folder) if isinstance(param.type, click.Path) else str(part)


def _place(text: str, folder: Path) -> str:
    """A path as an absolute one; addresses such as s3://bucket stay. Links stay: they may lead elsewhere on a node."""
    return text if "://" in text else os.path.normpath(folder / text)


def _cells(words: Sequence[str]) -> int:
    """Cells of a sweep: levels times widths, as `30,40,50` or `200:240:20` with both ends; 1 where one is not given."""
    counts = []
    for name in ("--wl", "--ww"):
        text = next((w.partition("=")[2] for w in words if w.startswith(f"{name}=")), "")
        if name in words[:-1]:
            text = words[list(words).index(name) + 1]
        try:
            counts.append(sum(_length(part) for part in text.split(",")))
        except ValueError:
            return 1
    return counts[0] * counts[1]


def _length(part: str) -> int:
    ends = [float(number) for number in part.split(":")]
    return int((ends[1] - ends[0]) // ends[2]) + 1 if len(ends) == 3 and ends[2] > 0 else 1


def _beside(program: str) -> str:
    """The program of this environment, which a job on another machine may not have on its path."""
    own = Path(sys.executable).with_name(program)
    return str(own) if own.is_file() else shutil.which(program) or program


def hand_over(batch: System, text: str, run: Callable[..., Any] = subprocess.run) -> str:
    """Give a script to the batch system and return its answer.

    Raises
    ------
    UsageError
        USAGE: its program is not there, or refuses the script.
    """
    from livcli.batch import SUBMIT
    from livprep.errors import UsageError

    command = SUBMIT[batch]
    if shutil.which(command[0]) is None:
        raise UsageError("USAGE", f"--go: {command[0]} is not there; print the script and submit it where it is")
    done = run(command, input=text, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UsageError("USAGE", f"{command[0]} refuses the job: {done.stderr.strip() or done.returncode}")
    return str(done.stdout.strip())
