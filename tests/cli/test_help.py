"""Help and completion: every command has an example, every code an answer, and completion is quick."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys

import click
import pytest

from livcli import livprep_main, livtrain_main
from livcli.completion import SHELLS
from livprep.errors import CODES

COMMANDS = [
    (program, name, at)
    for program, module in (("livprep", livprep_main), ("livtrain", livtrain_main))
    for name, (at, _) in module.COMMANDS.items()
]


def load(at: str) -> click.Command:
    module, attribute = at.split(":")
    command: click.Command = getattr(importlib.import_module(module), attribute)
    return command


@pytest.mark.parametrize(("program", "name", "at"), COMMANDS, ids=lambda value: str(value).split(":")[0])
def test_every_help_has_an_example_and_says_what_each_option_is(program: str, name: str, at: str) -> None:
    command = load(at)
    assert command.help
    assert command.epilog is not None
    assert command.epilog.startswith(("Example: ", "Examples: "))
    assert f"{program} {name}" in command.epilog
    for option in command.params:
        if isinstance(option, click.Option):
            assert option.help, f"{program} {name} {option.opts}"


@pytest.mark.parametrize(("program", "name", "at"), COMMANDS, ids=lambda value: str(value).split(":")[0])
def test_every_command_takes_the_options_of_all(program: str, name: str, at: str) -> None:
    command = load(at)
    if isinstance(command, click.Group) or name == "completion":
        return
    found = {text for option in command.params for text in option.opts}
    assert {"--json", "-q", "-v"} <= found


@pytest.mark.parametrize("code", sorted(CODES))
def test_every_code_says_what_it_means_and_what_to_do(code: str) -> None:
    entry = CODES[code]
    assert entry.meaning.endswith(".")
    assert entry.remedy.rstrip(".")
    assert len(entry.meaning) > 15


@pytest.mark.parametrize("program", ["livprep", "livtrain"])
@pytest.mark.parametrize("shell", SHELLS)
def test_the_script_names_its_program(program: str, shell: str) -> None:
    done = call(program, "completion", shell)
    assert done.returncode == 0, done.stderr
    assert f"_{program.upper()}_COMPLETE={shell}_complete" in done.stdout


def call(program: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    script = f"from livcli.{program}_main import main; main()"
    settings = os.environ | environment
    return subprocess.run(
        [sys.executable, "-c", script, *arguments],
        capture_output=True,
        text=True,
        env=settings,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(
    ("line", "word", "expected"),
    [("livprep win", "1", "plain,window"), ("livprep window --bl", "2", "plain,--blend"),
     ("livprep window --equalize s", "3", "plain,slice"), ("livtrain rep", "1", "plain,report")],
)  # fmt: skip
def test_commands_options_and_values_are_completed(line: str, word: str, expected: str) -> None:
    program = line.split()[0]
    variables = {f"_{program.upper()}_COMPLETE": "bash_complete", "COMP_WORDS": line, "COMP_CWORD": word}
    done = call(program, **variables)
    assert expected in done.stdout.split(), done.stderr


def test_names_are_completed_with_their_summaries_and_without_importing_a_command() -> None:
    code = (
        "import sys; from livcli.livprep_main import livprep; import click; "
        "found = livprep.shell_complete(click.Context(livprep), 'in'); "
        "print([(each.value, each.help) for each in found]); sys.exit('livcli.livprep_ingest' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "('ingest', 'Read 3DIRCADb or LiTS into the store.')" in done.stdout


@pytest.mark.parametrize(
    ("name", "words"), [("inget", "no command 'inget'; did you mean 'ingest'? See"), ("x9", "--help lists them.")]
)
def test_a_misspelled_command_is_answered_with_the_nearest(name: str, words: str) -> None:
    done = call("livprep", name)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert words in done.stderr


def test_verbose_says_nothing_of_other_libraries() -> None:
    done = call("livprep", "verify", "--store", "/none.zarr", "-v")
    assert done.stderr.startswith("livprep: STORE_MISSING: ")


def test_another_shell_is_refused_with_the_list() -> None:
    done = call("livprep", "completion", "powershell")
    assert done.returncode == 2
    assert "'bash', 'zsh', 'fish'" in done.stderr
