"""``pyro-smat train config.toml``: meta-trains a router into a run folder; under torchrun, in many processes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pyro_smat.cli.options import (
    Device,
    Overrides,
    OwnGuide,
    OwnModel,
    OwnNetwork,
    OwnParts,
    Progress,
    Seed,
    Wait,
    own_parts,
)


def train(
    config: Annotated[Path, typer.Argument(help="TOML config.")],
    output: Annotated[Path, typer.Option(help="Run folder.")] = Path("runs/train"),
    set_: Overrides = None,
    resume: Annotated[bool, typer.Option(help="Continue the run in the output folder.")] = False,
    model: OwnModel = None,
    guide: OwnGuide = None,
    network: OwnNetwork = None,
    own: OwnParts = None,
    seed: Seed = None,
    device: Device = "auto",
    progress: Progress = True,
    wait: Wait = False,
) -> None:
    """Meta-train a router; in many processes: torchrun --nproc-per-node 4 -m pyro_smat train config.toml."""
    from pyro_smat.distributed import World, joined
    from pyro_smat.inference.assembly.config import load_config

    parts = own_parts(model, guide, network, own)
    sections = {"network": "sources.network", "encoder": "guide.encoder", "episode_loss": "objective.episode_loss"}
    overrides = [f"{sections.get(kind, kind)}.kind={name}" for kind, name in parts.items()]
    parsed = load_config(config, [*(set_ or []), *([] if seed is None else [f"seed={seed}"]), *overrides])
    from pyro_smat.inference.assembly.router import choose_device
    from pyro_smat.inference.runs.folder import own_folder, prepare_folder
    from pyro_smat.inference.runs.train import train_router

    with joined(choose_device(device)) as where, own_folder(output, wait=wait):
        prepare_folder(output, parsed, resume=resume)
        classifier, history = train_router(parsed, where, folder=output, resume=resume, progress=progress)
        leads = World.current().leads
    if not leads:
        return
    if len(history):
        last = history.iloc[-1]
        shown = [k for k in history.columns if last[k] == last[k] and k != "images_per_second"]
        typer.echo(", ".join(f"{k} {last[k]:.4g}" for k in shown))
    typer.echo(str(classifier.deployment))
    typer.echo(f"router: {output / 'router'}")
