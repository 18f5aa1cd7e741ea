"""What ``pyro-smat cost RUN`` does: measure the prices of a trained router on this machine and write them beside it."""

from __future__ import annotations

from pathlib import Path

import torch

from pyro_smat.cost.calibration import Calibration, calibrate
from pyro_smat.cost.model import open_entries_of
from pyro_smat.inference.deployment.classifier import RoutedClassifier


def calibrate_router(classifier: RoutedClassifier, images: int = 25, repeats: int = 30) -> Calibration:
    """Prices of a router's networks where they are, on ``images`` images of noise.

    Raises:
        ValueError: for fewer than one image or repeat.
    """
    router = classifier.router
    data = router.config.data
    if images < 1:
        raise ValueError(f"images is {images}; expected at least 1, the support and queries of a task")
    shape = (images, data.channels, data.size, data.size)
    noise = torch.rand(shape, generator=torch.Generator().manual_seed(0))  # blank images run faster than real ones
    space, sources = router.library.space, router.model.source_basis
    return calibrate(router.network, space, sources, noise, device=router.device, repeats=repeats)


def calibrate_files(
    folder: str | Path,
    *,
    device: str = "auto",
    images: int = 25,
    repeats: int = 30,
    output: str | Path | None = None,
    model_class: type | None = None,
    guide_class: type | None = None,
) -> str:
    """Measure the prices of the router in a run or router folder; a table, and ``cost.json``.

    Args:
        folder: of a run (with router/) or of a router.
        device: "auto", "cpu" or "cuda".
        images: of a task, supports and queries, that a forward pass runs.
        repeats: measurements of each time.
        output: where the calibration goes; default ``cost.json`` in the folder.
        model_class, guide_class: the classes of a router that was trained with classes of the user's own.

    Returns:
        The table, and the prices for a cost-aware prior as a line of a config.

    Raises:
        ValueError: for a folder without a router, or numbers below 1.
    """
    folder = Path(folder)
    saved = folder if (folder / "router.json").exists() else folder / "router"
    classifier = RoutedClassifier.load(saved, device=device, model_class=model_class, guide_class=guide_class)
    measured = calibrate_router(classifier, images, repeats)
    path = measured.save(output or folder / "cost.json")
    library, bank = classifier.router.library, classifier.router.model.experts
    opened = None if bank is None else open_entries_of(bank.masks().cpu(), library.space)
    prices = ", ".join(f"{price:.4g}" for price in measured.latency.source_prices(len(library), opened).tolist())
    return f'{measured}\nfor a config: prior = {{kind = "cost_aware", costs = [{prices}]}} # ms\nwritten to {path}'
