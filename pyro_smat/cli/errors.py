"""How every command reports bad input: one message on stderr and exit code 2, never a traceback."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Annotated, Any

import typer

Seed = Annotated[int | None, typer.Option(help="Seed; default: the config's.")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
Progress = Annotated[bool, typer.Option(help="Show progress bars.")]
Overrides = Annotated[list[str] | None, typer.Option("--set", help="Override the config, key=value.")]
OwnModel = Annotated[str | None, typer.Option("--model", help="A model of your own: my_model.py:MyModel.")]
OwnGuide = Annotated[str | None, typer.Option("--guide", help="A guide of your own: my_guide.py:MyGuide.")]

Command = Callable[..., None]


def commands_of(app: typer.Typer) -> Callable[[Command], Command]:
    """A decorator that registers a function as a command of ``app``, under its own name."""

    def command(function: Command) -> Command:
        @wraps(function)
        def run(*args: Any, **kwargs: Any) -> None:
            try:
                function(*args, **kwargs)
            except ValueError as error:
                typer.echo(f"error: {error}", err=True)
                raise typer.Exit(2) from error

        app.command(name=function.__name__)(run)
        return function

    return command
