"""``pyro-smat quickstart``: the whole story on built-in glyphs, from checkpoints to a report."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from pyro_smat.cli.options import Device, Overrides, Progress, Seed


def quickstart(
    output: Annotated[Path, typer.Option(help="Run folder.")] = Path("runs/quickstart"),
    from_scratch: Annotated[
        bool, typer.Option(help="Make the source checkpoints too (17 minutes of one core).")
    ] = False,
    episodes: Annotated[int, typer.Option(min=1, help="Test episodes per condition.")] = 100,
    set_: Overrides = None,
    seed: Seed = None,
    device: Device = "auto",
    browser: Annotated[bool, typer.Option(help="Open the report where there is a browser.")] = True,
    progress: Progress = True,
) -> None:
    """The whole story on built-in glyphs: open sources, meta-train a router, evaluate it, write a report."""
    from pyro_smat.cli.quickstart_run import run_quickstart

    report = run_quickstart(
        output,
        overrides=[*(set_ or []), *([] if seed is None else [f"seed={seed}"])],
        episodes=episodes,
        from_scratch=from_scratch,
        device=device,
        progress=progress,
    )
    typer.echo(f"report: {report}")
    if browser and sys.stdout.isatty():
        typer.launch(report.resolve().as_uri())
