"""``pyro-smat adapt RUN support/`` and ``pyro-smat predict RUN support/ images``: one task at the command line."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from pyro_smat.cli.options import (
    Device,
    OwnGuide,
    OwnModel,
    OwnNetwork,
    OwnParts,
    RunFolder,
    Seed,
    open_router,
    own_parts,
)

Support = Annotated[Path, typer.Argument(help="Folder of class folders: SUPPORT/<class>/*.png.")]
Refine = Annotated[
    str | None,
    typer.Option(help="After routing: a refinement, with options: NAME or NAME:key=value,... such as frank_wolfe."),
]


def adapt(
    run: RunFolder,
    support: Support,
    refine: Refine = None,
    scores: Annotated[bool, typer.Option(help="One line of JSON instead, which `monitor` follows.")] = False,
    model: OwnModel = None,
    guide: OwnGuide = None,
    network: OwnNetwork = None,
    own: OwnParts = None,
    seed: Seed = None,
    device: Device = "auto",
) -> None:
    """Route one labelled support set: which sources and experts, how sure, what it costs."""
    import json

    task, _ = _adapted(run, support, refine, seed, device, own_parts(model, guide, network, own))
    typer.echo(json.dumps(task.routing_scores) if scores else str(task.explain()))


def predict(
    run: RunFolder,
    support: Support,
    images: Annotated[Path, typer.Argument(help="One image, or a folder of images.")],
    output: Annotated[Path | None, typer.Option(help="CSV file for the probabilities.")] = None,
    rule: Annotated[str | None, typer.Option(help="A decision rule: NAME or NAME:key=value,...")] = None,
    refine: Refine = None,
    model: OwnModel = None,
    guide: OwnGuide = None,
    network: OwnNetwork = None,
    own: OwnParts = None,
    seed: Seed = None,
    device: Device = "auto",
) -> None:
    """Classify images with a network routed by a labelled support set."""
    import pandas as pd

    from pyro_smat.episodes.readers.decode import read_images
    from pyro_smat.files import write_atomically
    from pyro_smat.registry import parse

    task, data = _adapted(run, support, refine, seed, device, own_parts(model, guide, network, own))
    pixels, names = read_images(images, size=data.size, channels=data.channels)
    probabilities = task.predict_proba(pixels, None if rule is None else parse(rule))
    if task.abstains_on(pixels):
        typer.echo("not reliable: more wrong answers are expected than the tolerance allows; see `adapt`", err=True)
    if rule is None and task.falls_back_on(pixels):
        typer.echo(f"these come from the fallback, {task.fallback}", err=True)
    for name, row in zip(names, probabilities, strict=True):
        best = int(row.argmax())
        typer.echo(f"{name}\t{task.classes[best]}\t{float(row[best]):.3f}")
    if output is not None:
        table = pd.DataFrame(probabilities.numpy(), columns=list(task.classes))
        table.insert(0, "image", names)
        write_atomically(output, table.to_csv(index=False).encode())


def _adapted(
    run: Path, support: Path, refine: str | None, seed: int | None, device: str, own: Mapping[str, str]
) -> tuple[Any, Any]:
    """The task of a support folder, and what the router's config says of images."""
    from pyro_smat.episodes.readers.folders import read_folder

    classifier = open_router(run, device, own)
    data = classifier.router.config.data
    pool = read_folder(support, size=data.size, channels=data.channels)
    names = [pool.class_names[0][k] for k in pool.labels[:, 0].tolist()]
    return classifier.adapt(pool.images.float() / 255.0, names, seed=seed or 0, refine=refine), data
