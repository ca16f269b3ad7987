"""`ser completion`: the shell completes commands and options."""

import os
from pathlib import Path

import click
from click.shell_completion import get_completion_class

from .output import answer

# Where each shell looks by itself; zsh's has to be named in ~/.zshrc.
PLACES = {
    "bash": ("XDG_DATA_HOME", ".local/share", "bash-completion/completions/ser"),
    "fish": ("XDG_CONFIG_HOME", ".config", "fish/completions/ser.fish"),
    "zsh": ("ZDOTDIR", "", ".zfunc/_ser"),
}


@click.command()
@click.argument("shell", required=False, type=click.Choice(list(PLACES)))
@click.option(
    "--print", "only_print", is_flag=True, help="Print the script in place of installing it."
)
@click.pass_context
def completion(ctx: click.Context, shell: str | None, only_print: bool) -> None:
    """Install the completion of `ser` for SHELL, by default the one that you use, in your home
    folder.

    \b
    Examples:
      ser completion
      ser completion zsh --print
    """
    shell = shell or Path(os.environ.get("SHELL", "")).name
    shell_class = get_completion_class(shell)
    if shell not in PLACES or shell_class is None:
        raise click.UsageError(f"name your shell: {', '.join(PLACES)}")
    script = shell_class(ctx.find_root().command, {}, "ser", "_SER_COMPLETE").source()
    if only_print:
        answer(script)
        return
    from ser.disk.write import make_folder, write_whole

    variable, folder, name = PLACES[shell]
    path = Path(os.environ.get(variable) or Path.home() / folder) / name
    make_folder(path.parent)
    write_whole(path, script.encode())
    also = (
        f"; add to your .zshrc, before compinit: fpath+=({path.parent})" if shell == "zsh" else ""
    )
    answer(f"wrote {path}{also}; open a new {shell} and press Tab after `ser `")
