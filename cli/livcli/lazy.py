"""Load commands when they are called, and turn errors into one line and an exit code."""

from __future__ import annotations

import errno
import importlib
import io
import logging
import os
import re
import signal
import sys
import traceback
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn

import click
from click.shell_completion import CompletionItem

from livprep.errors import CODES, LivError, trace

SHOW_TEXT = "LIVPREP_DEBUG"
"""Environment variable: also print the text of an error that is a defect, and of its causes."""

_STOPPING: dict[int, int] = {signal.SIGTERM: 143, signal.SIGUSR1: 75, signal.SIGUSR2: 75}
"""Signals that end a command, with its exit code; after 75 it is to be run again. INT is Python's own."""

_EXTRAS = {
    **dict.fromkeys(("torch", "monai", "tensorboard"), "train"),
    **dict.fromkeys(("matplotlib", "PIL", "jinja2", "markupsafe"), "report"),
    "cv2": "clahe",
    "dask_jobqueue": "cluster",
    "obstore": "objects",
    **dict.fromkeys(("highdicom", "onnx", "onnxruntime", "onnxscript", "safetensors"), "export"),
}
"""What may not be installed -> the extra that brings it."""


class LazyGroup(click.Group):
    """A group whose commands live in modules that are imported when needed.

    Parameters
    ----------
    commands_at
        Command name -> (`module:attribute`, one line for --help).
    """

    def __init__(self, *args: object, commands_at: Mapping[str, tuple[str, str]], **kwargs: object) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]
        self._commands_at = commands_at

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names in the order in which they were given."""
        return list(self._commands_at)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return a command."""
        if cmd_name not in self._commands_at:
            return None
        module, attribute = self._commands_at[cmd_name][0].split(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command of the first argument; a misspelled one is answered with the nearest."""
        name = args[0]
        if name not in self._commands_at and not name.startswith("-"):
            near = get_close_matches(name, self._commands_at, n=1)
            ctx.fail(f"no command {name!r}; " + (f"did you mean {near[0]!r}?" if near else "--help lists them"))
        return super().resolve_command(ctx, args)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Names with their summaries, without importing anything."""
        found = [
            CompletionItem(name, help=summary)
            for name, (_, summary) in self._commands_at.items()
            if name.startswith(incomplete)
        ]
        return found + click.Command.shell_complete(self, ctx, incomplete)

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; where the reader of its output went away, as `| head` does, end as SIGPIPE would: undone."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            # what is still buffered must not fail again at exit
            sys.stdout = sys.stderr = io.StringIO()
            raise click.exceptions.Exit(128 + signal.SIGPIPE) from None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list without importing anything."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in self._commands_at.items()])


def run(group: click.Group, program: str) -> None:
    """Run a command line and exit with the code that commands.md gives."""
    for number in _STOPPING:
        signal.signal(number, _stop)
    # A stopped run abandons what zarr's own thread is writing; what asyncio says about that is noise.
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    try:
        result = group.main(prog_name=program, standalone_mode=False)
        sys.exit(result if isinstance(result, int) else 0)
    except click.exceptions.Exit as stop:
        sys.exit(stop.exit_code)
    except _Stopped as stop:
        _leave(program, stop.signum)
    except (click.Abort, KeyboardInterrupt):
        _leave(program, signal.SIGINT)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        sys.exit(2)
    except click.ClickException as error:
        at = getattr(error, "ctx", None)
        _say(program, "USAGE", error.format_message(), f"See `{at.command_path if at else program} --help`.")
        sys.exit(2)
    except LivError as error:
        _say(program, error.code, error.message, CODES[error.code].remedy)
        sys.exit(error.exit_code)
    except ModuleNotFoundError as error:
        extra = _EXTRAS.get((error.name or "").partition(".")[0])
        extra = "train" if extra == "report" and program == "livtrain" else extra
        if extra is not None:
            _say(program, "USAGE", f"{error.name} is not installed", f"pip install 'livprep[{extra}]'")
            sys.exit(2)
        _internal(program, error)
    except OSError as error:
        _say_io(program, error)
        sys.exit(74)
    except Exception as error:
        _internal(program, error)


def _internal(program: str, error: BaseException) -> None:
    """Say what kind of defect it is and where; its text, which may quote a patient's header, only on request."""
    if os.environ.get(SHOW_TEXT):
        traceback.print_exception(error)
    elif logging.getLogger().isEnabledFor(logging.DEBUG):
        click.echo(f"Traceback (most recent call last):\n{trace(error)}", err=True)
    frames = traceback.extract_tb(error.__traceback__)
    where = f" in {Path(frames[-1].filename).name}, line {frames[-1].lineno}" if frames else ""
    _say(program, "INTERNAL", f"{type(error).__name__}{where}", CODES["INTERNAL"].remedy)
    sys.exit(1)


def _say_io(program: str, error: OSError) -> None:
    """What the system refused, at which path."""
    code = "DISK_FULL" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "IO"
    what = f"{error.filename}: {error.strerror}" if error.filename and error.strerror else str(error)
    remedy = CODES[code].remedy
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        remedy = "Ask for permission there, or give another path."
    _say(program, code, what, remedy)


def _say(program: str, code: str, message: str, remedy: str) -> None:
    """One line on stderr: code, what is wrong, what to do (once, where the message says it already)."""
    line = " ".join(message.split()).rstrip(".")
    advice = re.findall(r"`[^`]+`", remedy)
    if advice and all(each in line for each in advice):
        remedy = ""
    click.echo(f"{program}: {code}: {line}{'' if line.endswith('?') else '.'} {remedy}".rstrip(), err=True)


class _Stopped(SystemExit):
    """A signal as an exit instead of the default death, so that staged work is removed on the way out."""

    def __init__(self, signum: int) -> None:
        super().__init__(128 + signum)
        self.signum = signum


def _stop(signum: int, frame: object) -> None:
    for number in _STOPPING:
        signal.signal(
            number, signal.SIG_IGN
        )  # the same again, as from a whole process group, must not stop the tidying
    raise _Stopped(signum)


def _leave(program: str, signum: int) -> NoReturn:
    """End at once: everything is cleaned up, and the finalizers of zarr's and Dask's threads would print tracebacks."""
    code = _STOPPING.get(signum, 128 + signum)
    if code == CODES["INTERRUPTED"].exit_code:
        _say(program, "INTERRUPTED", f"stopped by {signal.Signals(signum).name}", CODES["INTERRUPTED"].remedy)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
