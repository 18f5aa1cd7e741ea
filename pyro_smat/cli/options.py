"""What commands share: their common options, and how bad input is reported: one message on stderr, exit code 2."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Mapping
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import typer

RunFolder = Annotated[Path, typer.Argument(help="A run folder (or a router folder).")]
Seed = Annotated[int | None, typer.Option(help="Seed; default: the config's.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")]
Progress = Annotated[bool, typer.Option(help="Show progress bars.")]
Overrides = Annotated[list[str] | None, typer.Option("--set", help="Override the config, key=value.")]
OwnModel = Annotated[str | None, typer.Option("--model", help="A model of your own: my_model.py:MyModel.")]
OwnGuide = Annotated[str | None, typer.Option("--guide", help="A guide of your own: my_guide.py:MyGuide.")]
OwnNetwork = Annotated[str | None, typer.Option("--network", help="A network of your own: my_network.py:build.")]
OwnParts = Annotated[
    list[str] | None, typer.Option("--own", help="Any other part of your own: prior=my_prior.py:MyPrior.")
]
AllowOutside = Annotated[bool, typer.Option(help="Read files outside the folder of a table.")]

Wait = Annotated[
    bool, typer.Option("--wait", help="Wait for another process that works in that folder instead of giving up.")
]

Command = Callable[..., None]


def commands_of(app: typer.Typer) -> Callable[[Command], Command]:
    """A decorator that registers a function as a command of ``app``, under its own name."""

    def command(function: Command) -> Command:
        @wraps(function)
        def run(*args: Any, **kwargs: Any) -> None:
            warnings.showwarning = _one_line
            try:
                function(*args, **kwargs)
            except (ValueError, OSError) as error:
                typer.echo(f"error: {' '.join(str(error).split())}", err=True)
                raise typer.Exit(2) from error

        app.command(name=function.__name__.rstrip("_"))(run)
        return function

    return command


def own_parts(
    model: str | None = None, guide: str | None = None, network: str | None = None, own: list[str] | None = None
) -> Mapping[str, str]:
    """Kind -> "file.py:Name" of what a command was told to run.

    Raises:
        ValueError: for something that is not kind=file.py:Name.
    """
    from pyro_smat.registry import KINDS

    parts = {k: v for k, v in (("model", model), ("guide", guide), ("network", network)) if v is not None}
    for text in own or []:
        kind, separator, name = text.partition("=")
        if not separator or kind.replace("-", "_") not in KINDS:
            raise ValueError(f"--own is {text!r}; expected KIND=file.py:Name, the kind one of {', '.join(KINDS)}")
        parts[kind.replace("-", "_")] = name
    return parts


def open_router(run: Path, device: str, own: Mapping[str, str]) -> Any:
    """The router of a run folder; files of the user's own are run, and that is said."""
    from pyro_smat.inference.deployment.classifier import RoutedClassifier
    from pyro_smat.inference.runs.folder import router_folder
    from pyro_smat.registry.entries import load_file

    made = {}
    for kind, name in own.items():
        typer.echo(f"running {name} for the {kind}", err=True)
        made[kind] = load_file(name)
    return RoutedClassifier.load(router_folder(run), device=device, own=made)


def _one_line(message: Warning | str, category: type[Warning], *rest: Any, **more: Any) -> None:
    print(f"warning: {' '.join(str(message).split())}", file=sys.stderr)
