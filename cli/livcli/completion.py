"""Shell completion, and the command that prints its script."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

SHELLS = ("bash", "zsh", "fish")
_WHERE = {
    "bash": 'eval "$({program} completion bash)"  # in ~/.bashrc',
    "zsh": 'eval "$({program} completion zsh)"  # in ~/.zshrc, after compinit',
    "fish": "{program} completion fish > ~/.config/fish/completions/{program}.fish",
}


def script(program: click.Command, name: str, shell: str) -> str:
    """The text that a shell reads to complete a program's commands, options and values."""
    found = get_completion_class(shell)
    assert found is not None
    variable = f"_{name.upper()}_COMPLETE"
    return found(program, {}, name, variable).source()


def completion_command(name: str) -> click.Command:
    """The command `NAME completion SHELL`."""

    @click.command(
        "completion",
        epilog=f"Example: {_WHERE['bash'].format(program=name)}",
        context_settings={"help_option_names": ["-h", "--help"]},
        help=f"Print a script that lets SHELL complete the commands and options of {name}. Load it with: "
        + "; ".join(_WHERE[shell].format(program=name).split("  #")[0] for shell in SHELLS),
    )
    @click.argument("shell", type=click.Choice(SHELLS))
    @click.pass_context
    def command(ctx: click.Context, shell: str) -> None:
        root = ctx.find_root().command
        click.echo(script(root, name, shell))

    return command


livprep_completion = completion_command("livprep")
livtrain_completion = completion_command("livtrain")
