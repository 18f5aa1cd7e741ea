"""``pyro-smat certify RUN``: bounds of the loss on new episodes that hold with probability 1 - delta."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from pyro_smat.cli.evaluate import Confounding, Data, LabelNoise, Split, corruptions_of, pool_of
from pyro_smat.cli.options import (
    AllowOutside,
    Device,
    OwnGuide,
    OwnModel,
    OwnNetwork,
    OwnParts,
    Progress,
    RunFolder,
    Seed,
    Wait,
    open_router,
    own_parts,
)


def certify(
    run: RunFolder,
    loss: Annotated[Literal["error", "brier", "nll"], typer.Option(help="What is bounded; nll is clipped.")] = "error",
    rho: Annotated[float, typer.Option(help="Tail fraction of the CVaR.")] = 0.1,
    delta: Annotated[float, typer.Option(help="Probability with which any of the bounds may fail.")] = 0.05,
    split: Split = None,
    data: Data = None,
    allow_outside: AllowOutside = False,
    episodes: Annotated[int, typer.Option(min=1, help="Number of fresh episodes, N.")] = 1000,
    label_noise: LabelNoise = 0.0,
    confounding: Confounding = 0.0,
    output: Annotated[Path | None, typer.Option(help="Where results go; default: RUN/certificates/NAME.")] = None,
    model: OwnModel = None,
    guide: OwnGuide = None,
    network: OwnNetwork = None,
    own: OwnParts = None,
    seed: Seed = None,
    device: Device = "auto",
    progress: Progress = True,
    wait: Wait = False,
) -> None:
    """Upper bounds of the loss on new episodes of a pool that hold with probability 1 - delta; writes a report."""
    from pyro_smat.files import locked, plain, write_record
    from pyro_smat.inference.evaluation.certification import CERTIFICATE_SEED, certify_run
    from pyro_smat.report.page import write_report
    from pyro_smat.report.summary import build_report

    classifier = open_router(run, device, own_parts(model, guide, network, own))
    config = classifier.router.config.replaced(data={"allow_outside": allow_outside})
    pool, name = pool_of(config, split, data)
    if data is None and split in ("train", "validation"):
        typer.echo(
            f"warning: split {split!r} took part in making this router: the bound speaks of new episodes of images "
            "that it has seen, and says little about others",
            err=True,
        )
    folder = output or run / "certificates" / f"{name}-{loss}"
    with locked(folder, wait=wait):
        found = certify_run(
            classifier,
            pool,
            split=name,
            loss=loss,
            rho=rho,
            delta=delta,
            episodes=episodes,
            seed=CERTIFICATE_SEED if seed is None else seed,
            corruptions=corruptions_of(label_noise, confounding),
            progress=progress,
        )
        report = build_report(
            classifier,
            {name: found.evaluation},
            title=f"Certificates on {name}",
            subtitle=f"{len(pool):,} images, {episodes} fresh episodes from this pool",
            command=f"pyro-smat certify {run} --loss {loss} --rho {rho:g} --delta {delta:g}",
            certified=found,
        )
        write_record(folder / "certificates.json", plain({"format": 1, **found.to_dict()}))
        write_report(report, folder / "report.html")
    typer.echo(str(found))
    typer.echo(f"report: {folder / 'report.html'}")
