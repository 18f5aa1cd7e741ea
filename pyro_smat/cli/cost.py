"""``pyro-smat cost RUN``: measure what a trained router's sources and experts cost on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pyro_smat.cli.options import Device, OwnGuide, OwnModel, OwnNetwork, OwnParts, RunFolder, open_router, own_parts

if TYPE_CHECKING:
    from pyro_smat.cost import Calibration
    from pyro_smat.inference.deployment.classifier import RoutedClassifier


def cost(
    run: RunFolder,
    images: Annotated[int, typer.Option(min=1, help="Images of a task, support and queries.")] = 25,
    repeats: Annotated[int, typer.Option(min=1, help="Measurements of each time.")] = 30,
    output: Annotated[Path | None, typer.Option(help="JSON file; default: RUN/cost.json.")] = None,
    model: OwnModel = None,
    guide: OwnGuide = None,
    network: OwnNetwork = None,
    own: OwnParts = None,
    device: Device = "auto",
) -> None:
    """Measure what active sources and experts cost on this machine, in milliseconds and bytes."""
    from pyro_smat.cost.model import open_entries_of

    classifier = open_router(run, device, own_parts(model, guide, network, own))
    measured = calibrate_router(classifier, images, repeats)
    path = measured.save(output or run / "cost.json")
    library, bank = classifier.router.library, classifier.router.model.experts
    opened = None if bank is None else open_entries_of(bank.masks().cpu(), library.space)
    prices = ", ".join(f"{price:.4g}" for price in measured.latency.source_prices(len(library), opened).tolist())
    typer.echo(f'{measured}\nfor a config: prior = {{kind = "cost_aware", costs = [{prices}]}} # ms\nwritten to {path}')


def calibrate_router(classifier: RoutedClassifier, images: int = 25, repeats: int = 30) -> Calibration:
    """Prices of a router's networks where they are, on ``images`` images of noise.

    Raises:
        ValueError: for fewer than one image or repeat.
    """
    import torch

    from pyro_smat.cost import calibrate

    router = classifier.router
    data = router.config.data
    if images < 1:
        raise ValueError(f"images is {images}; expected at least 1, the support and queries of a task")
    shape = (images, data.channels, data.size, data.size)
    noise = torch.rand(shape, generator=torch.Generator().manual_seed(0))  # blank images run faster than real ones
    space, basis = router.library.space, router.model.source_basis
    return calibrate(router.network, space, basis, noise, device=router.device, repeats=repeats)
