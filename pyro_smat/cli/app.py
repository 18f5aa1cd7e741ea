"""The command line: ``pyro-smat quickstart | train | evaluate | certify | adapt | predict | route | monitor | ...``.

Thin: options in, functions of :mod:`pyro_smat.inference.runs` out, one file for each command. PyTorch is imported
inside the commands, so that ``--help`` answers at once.
"""

from __future__ import annotations

import os
from typing import Annotated

import typer

from pyro_smat import __version__
from pyro_smat.cli.adapt import adapt, predict
from pyro_smat.cli.certify import certify
from pyro_smat.cli.cost import cost
from pyro_smat.cli.diagnose import diagnose
from pyro_smat.cli.evaluate import evaluate
from pyro_smat.cli.freed_memory import keep_freed_memory
from pyro_smat.cli.monitor import monitor
from pyro_smat.cli.options import commands_of
from pyro_smat.cli.quickstart import quickstart
from pyro_smat.cli.route import route
from pyro_smat.cli.sources import app as sources_app
from pyro_smat.cli.train import train

VARIABLES = {  # of the environment, read when PyTorch is imported
    "PYTORCH_ENABLE_MPS_FALLBACK": "1",  # what MPS lacks, a CPU does
    "THP_MEM_ALLOC_ENABLE": "1",  # large tensors on a CPU in pages of 2 MiB: the first touch costs much less
}

app = typer.Typer(
    help="Bayesian routing over composed networks: mix fine-tuned checkpoints per task, and know how sure that is.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"pyro-smat {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
) -> None:
    """Options of the program itself."""


for _function in (quickstart, train, evaluate, certify, adapt, predict, route, monitor, diagnose, cost):
    commands_of(app)(_function)
app.add_typer(sources_app, name="sources")


def main() -> None:
    """Entry point of the ``pyro-smat`` command."""
    for name, value in VARIABLES.items():
        os.environ.setdefault(name, value)
    keep_freed_memory()
    app()
