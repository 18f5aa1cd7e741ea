"""``pyro-smat diagnose RUN``: is the routing posterior calibrated, does it concentrate, what would a prior change."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pyro_smat.cli.evaluate import Corrupted, Data, Split, corruptions_of, pool_of
from pyro_smat.cli.options import (
    AllowOutside,
    Device,
    OwnGuide,
    OwnModel,
    OwnNetwork,
    OwnParts,
    Progress,
    Seed,
    Wait,
    open_router,
    own_parts,
)

if TYPE_CHECKING:
    from pyro_smat.inference.diagnostics import Diagnosis
    from pyro_smat.report.page import Report


def diagnose(
    runs: Annotated[list[Path], typer.Argument(help="A run folder; further ones are its other training seeds.")],
    split: Split = None,
    data: Data = None,
    allow_outside: AllowOutside = False,
    episodes: Annotated[int, typer.Option(help="Number of episodes, N.")] = 400,
    draws: Annotated[int, typer.Option(help="Routings drawn of each posterior, K.")] = 200,
    shots: Annotated[str, typer.Option(help="Numbers of shots to look at, the largest within the data.")] = "1,2,3,5,8",
    prior: Annotated[
        str | None, typer.Option(help="Another prior to set against, without retraining: cost_aware:beta=2.")
    ] = None,
    against: Annotated[list[Path] | None, typer.Option(help="Another run, on the same episodes.")] = None,
    label_noise: Annotated[
        float | None, typer.Option(help="Fraction of support labels that are wrong; default: as in training.")
    ] = None,
    confounding: Annotated[
        float | None, typer.Option(help="Share of confounded supports; default: as in training.")
    ] = None,
    corrupt: Corrupted = None,
    output: Annotated[Path | None, typer.Option(help="Where results go; default: RUN/diagnostics/NAME.")] = None,
    model: OwnModel = None,
    guide: OwnGuide = None,
    network: OwnNetwork = None,
    own: OwnParts = None,
    seed: Seed = None,
    device: Device = "auto",
    progress: Progress = True,
    wait: Wait = False,
) -> None:
    """Diagnose the routing posterior: calibration, concentration, collapse, prior; writes a DataTree and a report."""
    levels = _numbers(shots)
    if episodes < 1 or draws < 1:
        raise ValueError(f"--episodes is {episodes} and --draws {draws}; expected at least 1 of each")
    from pyro_smat.files import locked
    from pyro_smat.inference.diagnostics.run import DIAGNOSE_SEED, diagnose_router
    from pyro_smat.registry import parse
    from pyro_smat.report.page import write_report

    parts = own_parts(model, guide, network, own)
    routers = [open_router(run, device, parts).router for run in runs]
    others = {run.name or str(run): open_router(run, device, parts).router for run in against or []}
    if len(others) < len(against or []):
        raise ValueError(
            f"--against names {len(against or [])} folders of {len(others)} names; expected different ones"
        )
    config = routers[0].config.replaced(data={"allow_outside": allow_outside})
    pool, name = pool_of(config, split, data)
    as_trained = label_noise is None and confounding is None and not corrupt
    folder = output or runs[0] / "diagnostics" / name
    command = f"pyro-smat diagnose {' '.join(map(str, runs))} --episodes {episodes} --draws {draws} --shots {shots}"
    command += f" --split {split}" * bool(split) + f" --data {data}" * bool(data) + f" --prior {prior}" * bool(prior)
    command += "".join(f" --against {run}" for run in against or [])
    subtitle = f"{episodes} episodes from {len(pool):,} images ({name}), {draws} draws of each posterior"
    with locked(folder, wait=wait):
        found = diagnose_router(
            routers[0],
            pool,
            episodes=episodes,
            num_samples=draws,
            shots=levels,
            prior=None if prior is None else parse(prior),
            seeds=routers[1:],
            against=others,
            corruptions=None if as_trained else corruptions_of(label_noise or 0.0, confounding or 0.0, corrupt),
            seed=DIAGNOSE_SEED if seed is None else seed,
            progress=progress,
        )
        found.write(folder)
        write_report(report_of(found, subtitle, command), folder / "report.html")
    typer.echo(str(found))
    typer.echo(f"report: {folder / 'report.html'}")


def report_of(found: Diagnosis, subtitle: str, command: str) -> Report:
    """The page: what to look at first, then every question, what was left out, and the pictures."""
    from pyro_smat.report.page import Report, Words

    looks = [verdict for verdict in found.verdicts if verdict.answer == "look"]
    fine = sum(verdict.answer == "ok" for verdict in found.verdicts)
    open_ = len(found.verdicts) - fine - len(looks)
    head = f"{fine} questions are ok, {len(looks)} want a look, {open_} cannot be told."
    rows = tuple((v.question, v.answer, v.because, v.cannot_see) for v in found.verdicts)
    out = tuple((name.replace("_", " "), reason) for name, reason in found.left_out.items())
    questions = Words(
        "Questions",
        '"ok" is said only where the check could have found a fault; every check has something that it cannot see.',
        ("Question", "Answer", "Because", "What it cannot see"),
        rows,
    )
    left = Words("Left out", "Checks that did not apply, and why.", ("Check", "Why"), out)
    return Report(
        title="Posterior diagnostics",
        subtitle=subtitle,
        summary=(head, *(f"Look: {verdict.question} {verdict.because}." for verdict in looks)),
        words=(questions, left) if out else (questions,),
        figures=tuple((picture.caption, picture.figure) for picture in found.pictures.values()),
        losses=None,
        command=command,
    )


def _numbers(text: str) -> tuple[int, ...]:
    try:
        found = tuple(sorted({int(word) for word in text.split(",")}))
    except ValueError:
        found = ()
    if not found or found[0] < 1:
        raise ValueError(f"--shots is {text!r}; expected numbers of shots such as 1,2,3,5,8")
    return found
