"""``pyro-smat evaluate RUN``: tables, figures and a report of a router on episodes of a pool."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

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

Split = Annotated[
    str | None, typer.Option(help="Split: test (the default), ood, validation, train; with --data, of that data.")
]
Data = Annotated[Path | None, typer.Option(help="Another folder or CSV of images.")]
LabelNoise = Annotated[float, typer.Option(help="Fraction of support labels that are wrong.")]
Confounding = Annotated[float, typer.Option(help="Share of confounded supports.")]
Corrupted = Annotated[
    list[str] | None, typer.Option("--corrupt", help="A corruption of supports: NAME or NAME:option=value,...")
]

EXAMPLES = 3  # tasks that a report shows


def evaluate(
    run: RunFolder,
    split: Split = None,
    data: Data = None,
    allow_outside: AllowOutside = False,
    episodes: Annotated[int, typer.Option(min=1, help="Number of episodes.")] = 600,
    label_noise: LabelNoise = 0.0,
    confounding: Confounding = 0.0,
    corrupt: Corrupted = None,
    way: Annotated[int | None, typer.Option(help="Classes an episode; default: the config's.")] = None,
    shot: Annotated[int | None, typer.Option(help="Support images a class.")] = None,
    query: Annotated[int | None, typer.Option(help="Query images a class.")] = None,
    abstain_risk: Annotated[
        float | None, typer.Option(help="Choose score and threshold anew: accepted tasks err at most this often.")
    ] = None,
    delta: Annotated[
        float | None, typer.Option(help="Probability with which --abstain-risk may fail; default: 0.1.")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Where results go; default: RUN/evaluations/NAME.")] = None,
    model: OwnModel = None,
    guide: OwnGuide = None,
    network: OwnNetwork = None,
    own: OwnParts = None,
    seed: Seed = None,
    device: Device = "auto",
    progress: Progress = True,
    wait: Wait = False,
) -> None:
    """Evaluate a router: accuracy, tails, calibration, regret, abstention; writes a report."""
    import dataclasses
    import re

    if abstain_risk is not None and not 0 < abstain_risk < 1:
        raise ValueError(f"--abstain-risk is {abstain_risk}; expected a risk in (0, 1)")
    if delta is not None and abstain_risk is None:
        raise ValueError(f"--delta is {delta} and there is no --abstain-risk, the promise that it is about; add it")
    from pyro_smat.files import locked
    from pyro_smat.inference.assembly.seen import described
    from pyro_smat.inference.deployment.classifier import RoutedClassifier
    from pyro_smat.inference.evaluation.guarantee import abstain_with_guarantee
    from pyro_smat.inference.evaluation.router import TEST_SEED, evaluate_router
    from pyro_smat.inference.runs.evaluate import validation_of, write_evaluation
    from pyro_smat.report.examples import example_tasks
    from pyro_smat.report.page import write_report
    from pyro_smat.report.summary import build_report

    classifier = open_router(run, device, own_parts(model, guide, network, own))
    router = classifier.router
    shape = {k: v for k, v in {"way": way, "shot": shot, "query": query}.items() if v is not None}
    shaped = router.config.episodes.uniform(**shape) if shape else router.config.episodes
    config = router.config.replaced(data={"allow_outside": allow_outside}, episodes=shaped)
    classifier = RoutedClassifier(dataclasses.replace(router, config=config), classifier.deployment)
    pool, name = pool_of(config, split, data)
    corruptions = corruptions_of(label_noise, confounding, corrupt)
    if abstain_risk is not None:
        found = abstain_with_guarantee(
            classifier,
            pool,
            split=name,
            risk=abstain_risk,
            delta=0.1 if delta is None else delta,
            corruptions=corruptions,
            progress=progress,
        )
        classifier = RoutedClassifier(classifier.router, found.deployment)
        typer.echo(str(found))
    name += f"-noise{label_noise:g}" * (label_noise > 0) + f"-confounded{confounding:g}" * (confounding > 0)
    name += "".join("-" + re.sub(r"[^\w.=]+", "-", text) for text in corrupt or [])
    folder = output or run / "evaluations" / name
    with locked(folder, wait=wait):
        evaluation = evaluate_router(
            classifier,
            pool,
            corruptions=corruptions,
            episodes=episodes,
            seed=TEST_SEED if seed is None else seed,
            validation=lambda: validation_of(classifier),
            progress=progress,
        )
        metrics = write_evaluation(folder, classifier, evaluation)
        routes = (
            pool.attributes if len(pool.attributes) > 1 else pool.domain_names if len(pool.domain_names) > 1 else ()
        )
        report = build_report(
            classifier,
            {name: evaluation},
            title=f"Routing on {name}",
            subtitle=f"{len(pool):,} images, {len(evaluation)} episodes from this pool"
            + f"; classes that sources were trained on: {described(evaluation.seen)}" * bool(evaluation.seen),
            command=f"pyro-smat evaluate {run}" + f" --data {data}" * bool(data) + f" --split {split}" * bool(split),
            route_names=routes,
            examples=example_tasks(
                classifier,
                config.episodes.sampler(pool, seed=TEST_SEED if seed is None else seed, corruptions=corruptions),
                name,
                count=EXAMPLES,
                route_names=routes,
            ),
        )
        write_report(report, folder / "report.html")
    _print_metrics(metrics)
    typer.echo(f"report: {folder / 'report.html'}")


def pool_of(config: Any, split: str | None, data: Path | None) -> tuple[Any, str]:
    """The images of a split, or of another folder or file, and what to call them.

    Raises:
        ValueError: for data that is not there, or has no such split.
    """
    from pyro_smat.inference.runs.pools import build_pool

    if data is None:
        return build_pool(config, split or "test"), split or "test"
    return build_pool(config, split, data), data.stem + f"-{split}" * bool(split)


def corruptions_of(label_noise: float, confounding: float, more: list[str] | None = None) -> list[Any]:
    """The corruptions that a command was asked for."""
    from pyro_smat.registry import build, choose, parse

    wanted: list[Any] = []
    if confounding:
        wanted.append({"kind": "confounding", "probability": confounding})
    if label_noise:
        wanted.append({"kind": "label_noise", "fraction": label_noise})
    return [build(choose("corruption", value, run_files=True)) for value in [*wanted, *map(parse, more or [])]]


def _print_metrics(metrics: dict[str, Any]) -> None:
    import pandas as pd

    columns = ["accuracy", "nll", "cvar_0.1", "regret_cvar_0.1", "ece"]
    table = pd.DataFrame.from_dict(metrics["methods"], orient="index")[columns]
    typer.echo(table.to_string(float_format="{:.3f}".format))
    if metrics["misrouting_rate"] == metrics["misrouting_rate"]:
        typer.echo(f"misrouted: {100 * metrics['misrouting_rate']:.1f}% of episodes")
