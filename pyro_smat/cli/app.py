"""The command line: ``pyro-smat quickstart | train | evaluate | certify | adapt | predict | monitor | ...``.

Thin: options in, functions of :mod:`pyro_smat.inference.runs.run` out. PyTorch is imported inside the commands, so that
``--help`` answers at once.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from pyro_smat.cli.errors import Device, Overrides, OwnGuide, OwnModel, Progress, Seed, commands_of
from pyro_smat.cli.sources import app as sources_app

app = typer.Typer(
    help="Bayesian routing over composed networks: mix fine-tuned checkpoints per task, and know how sure that is.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

RunFolder = Annotated[Path, typer.Argument(help="A run folder (or a router folder).")]
command = commands_of(app)
app.add_typer(sources_app, name="sources")


@command
def quickstart(
    output: Annotated[Path, typer.Option(help="Run folder.")] = Path("runs/quickstart"),
    from_scratch: Annotated[
        bool, typer.Option(help="Make the source checkpoints too (17 minutes of one core).")
    ] = False,
    episodes: Annotated[int, typer.Option(help="Test episodes per condition.")] = 100,
    set_: Overrides = None,
    seed: Seed = None,
    device: Device = "auto",
    browser: Annotated[bool, typer.Option(help="Open the report where there is a browser.")] = True,
    progress: Progress = True,
) -> None:
    """The whole story on built-in glyphs: open sources, meta-train a router, evaluate it, write a report."""
    from pyro_smat.cli.quickstart import run_quickstart

    report = run_quickstart(
        output,
        overrides=[*(set_ or []), *_seed(seed)],
        episodes=episodes,
        from_scratch=from_scratch,
        device=device,
        progress=progress,
    )
    typer.echo(f"report: {report}")
    if browser and sys.stdout.isatty():
        typer.launch(report.resolve().as_uri())


@command
def train(
    config: Annotated[Path, typer.Argument(help="TOML config.")],
    output: Annotated[Path, typer.Option(help="Run folder.")] = Path("runs/train"),
    set_: Overrides = None,
    resume: Annotated[bool, typer.Option(help="Continue the run in the output folder.")] = False,
    model: OwnModel = None,
    guide: OwnGuide = None,
    seed: Seed = None,
    device: Device = "auto",
    progress: Progress = True,
) -> None:
    """Meta-train a router."""
    from pyro_smat.inference.runs.config import load_config

    own = [f"custom.{part}={name}" for part, name in (("model", model), ("guide", guide)) if name is not None]
    parsed = load_config(config, [*(set_ or []), *_seed(seed), *own])
    from pyro_smat.inference.runs.assembly import choose_device
    from pyro_smat.inference.runs.run import prepare_folder, train_router

    prepare_folder(output, parsed, resume=resume)
    classifier, history = train_router(parsed, choose_device(device), output, resume=resume, progress=progress)
    if len(history):
        last = history.iloc[-1]
        typer.echo(
            ", ".join(f"{k} {last[k]:.4g}" for k in history.columns if last[k] == last[k] and k != "images_per_second")
        )
    typer.echo(f"abstains when {classifier.deployment.scorer.title} > {classifier.deployment.threshold:.4g}")
    typer.echo(f"router: {output / 'router'}")


@command
def evaluate(
    run: RunFolder,
    split: Annotated[str, typer.Option(help="Split of the run's own data: test, ood, validation, train.")] = "test",
    data: Annotated[Path | None, typer.Option(help="Another folder or CSV of images.")] = None,
    episodes: Annotated[int, typer.Option(help="Number of episodes.")] = 600,
    label_noise: Annotated[float, typer.Option(help="Fraction of support labels that are wrong.")] = 0.0,
    confounding: Annotated[float, typer.Option(help="Share of confounded supports.")] = 0.0,
    way: Annotated[int | None, typer.Option(help="Classes an episode; default: the config's.")] = None,
    shot: Annotated[int | None, typer.Option(help="Support images a class.")] = None,
    query: Annotated[int | None, typer.Option(help="Query images a class.")] = None,
    abstain_risk: Annotated[
        float | None, typer.Option(help="Choose score and threshold anew: accepted tasks err at most this often.")
    ] = None,
    delta: Annotated[float, typer.Option(help="Probability with which that may fail.")] = 0.1,
    output: Annotated[Path | None, typer.Option(help="Where results go; default: RUN/evaluations/NAME.")] = None,
    model: OwnModel = None,
    guide: OwnGuide = None,
    seed: Seed = None,
    device: Device = "auto",
    progress: Progress = True,
) -> None:
    """Evaluate a router: accuracy, tails, calibration, regret, abstention; writes a report."""
    import dataclasses

    from pyro_smat.episodes.corruption import SupportCorruption
    from pyro_smat.inference import RoutedClassifier
    from pyro_smat.inference.evaluation.guarantee import abstain_with_guarantee
    from pyro_smat.inference.runs.run import TEST_SEED, evaluate_router, write_evaluation
    from pyro_smat.report.page import write_report
    from pyro_smat.report.summary import build_report

    classifier = _load(run, device, model, guide)
    corruption = SupportCorruption(label_noise=label_noise, confounding=confounding)
    config = classifier.router.config
    shape = {k: v for k, v in {"way": way, "shot": shot, "query": query}.items() if v is not None}
    if shape:
        config = config.model_copy(update={"episodes": config.episodes.model_copy(update=shape)})
        classifier.router = dataclasses.replace(classifier.router, config=config)
    pool, name = _pool(config, split, data)
    if abstain_risk is not None:
        found = abstain_with_guarantee(
            classifier, pool, split=name, risk=abstain_risk, delta=delta, corruption=corruption, progress=progress
        )
        classifier = RoutedClassifier(classifier.router, found.deployment)
        typer.echo(str(found))
    evaluation = evaluate_router(
        classifier,
        pool,
        corruption=corruption,
        episodes=episodes,
        seed=TEST_SEED if seed is None else seed,
        progress=progress,
    )
    name += f"-noise{label_noise:g}" * (label_noise > 0) + f"-confounded{confounding:g}" * (confounding > 0)
    folder = output or run / "evaluations" / name
    metrics = write_evaluation(folder, classifier, evaluation)
    routes = pool.attributes if len(pool.attributes) > 1 else pool.domain_names if len(pool.domain_names) > 1 else ()
    report = build_report(
        classifier,
        {name: evaluation},
        title=f"Routing on {name}",
        subtitle=f"{len(pool):,} images, {len(evaluation)} episodes from this pool",
        command=f"pyro-smat evaluate {run} " + (f"--data {data}" if data else f"--split {split}"),
        route_names=routes,
    )
    write_report(report, folder / "report.html")
    _print_metrics(metrics)
    typer.echo(f"report: {folder / 'report.html'}")


Refine = Annotated[
    str | None,
    typer.Option(
        help="After routing: frank_wolfe, gradient, risk_averse or dirichlet, with settings: NAME:key=value,..."
    ),
]


@command
def certify(
    run: RunFolder,
    loss: Annotated[Literal["error", "brier", "nll"], typer.Option(help="What is bounded; nll is clipped.")] = "error",
    rho: Annotated[float, typer.Option(help="Tail fraction of the CVaR.")] = 0.1,
    delta: Annotated[float, typer.Option(help="Probability with which any of the bounds may fail.")] = 0.05,
    split: Annotated[str, typer.Option(help="Split of the run's own data, not one that chose anything.")] = "test",
    data: Annotated[Path | None, typer.Option(help="Another folder or CSV of images.")] = None,
    episodes: Annotated[int, typer.Option(help="Number of fresh episodes, N.")] = 1000,
    label_noise: Annotated[float, typer.Option(help="Fraction of support labels that are wrong.")] = 0.0,
    confounding: Annotated[float, typer.Option(help="Share of confounded supports.")] = 0.0,
    output: Annotated[Path | None, typer.Option(help="Where results go; default: RUN/certificates/NAME.")] = None,
    model: OwnModel = None,
    guide: OwnGuide = None,
    seed: Seed = None,
    device: Device = "auto",
    progress: Progress = True,
) -> None:
    """Upper bounds of the loss on new episodes of a pool that hold with probability 1 - delta; writes a report."""
    import json

    from pyro_smat.episodes.corruption import SupportCorruption
    from pyro_smat.inference.evaluation.certification import CERTIFICATE_SEED, certify_run
    from pyro_smat.inference.training.checkpoint import write_atomically
    from pyro_smat.report.page import write_report
    from pyro_smat.report.summary import build_report

    classifier = _load(run, device, model, guide)
    pool, name = _pool(classifier.router.config, split, data)
    found = certify_run(
        classifier,
        pool,
        split=name,
        loss=loss,
        rho=rho,
        delta=delta,
        episodes=episodes,
        seed=CERTIFICATE_SEED if seed is None else seed,
        corruption=SupportCorruption(label_noise=label_noise, confounding=confounding),
        progress=progress,
    )
    folder = output or run / "certificates" / f"{name}-{loss}"
    report = build_report(
        classifier,
        {name: found.evaluation},
        title=f"Certificates on {name}",
        subtitle=f"{len(pool):,} images, {episodes} fresh episodes from this pool",
        command=f"pyro-smat certify {run} --loss {loss} --rho {rho:g} --delta {delta:g}",
        certified=found,
    )
    write_atomically(folder / "certificates.json", json.dumps(found.to_dict(), indent=2).encode())
    write_report(report, folder / "report.html")
    typer.echo(str(found))
    typer.echo(f"report: {folder / 'report.html'}")


@command
def adapt(
    run: RunFolder,
    support: Annotated[Path, typer.Argument(help="Folder of class folders: SUPPORT/<class>/*.png.")],
    refine: Refine = None,
    scores: Annotated[bool, typer.Option(help="One line of JSON instead, which `monitor` follows.")] = False,
    model: OwnModel = None,
    guide: OwnGuide = None,
    seed: Seed = None,
    device: Device = "auto",
) -> None:
    """Route one labelled support set: which sources and experts, how sure, what it costs."""
    import json

    task = _adapt(run, support, refine, seed, device, model, guide)
    typer.echo(json.dumps(task.routing_scores) if scores else str(task.explain()))


@command
def predict(
    run: RunFolder,
    support: Annotated[Path, typer.Argument(help="Folder of class folders: SUPPORT/<class>/*.png.")],
    images: Annotated[Path, typer.Argument(help="One image, or a folder of images.")],
    output: Annotated[Path | None, typer.Option(help="CSV file for the probabilities.")] = None,
    rule: Annotated[str | None, typer.Option(help="A decision rule: mean, map, gibbs, top_k, ...")] = None,
    refine: Refine = None,
    model: OwnModel = None,
    guide: OwnGuide = None,
    seed: Seed = None,
    device: Device = "auto",
) -> None:
    """Classify images with a network routed by a labelled support set."""
    import pandas as pd

    from pyro_smat.episodes.readers.decode import read_images
    from pyro_smat.inference.training.checkpoint import write_atomically

    task = _adapt(run, support, refine, seed, device, model, guide)
    data = _data_of(run)
    pixels, names = read_images(images, size=data["size"], channels=data["channels"])
    probabilities = task.predict_proba(pixels, rule)
    if rule is None and task.abstains_on(pixels):
        typer.echo("the routing is not sure: these come from the fallback", err=True)
    for name, row in zip(names, probabilities, strict=True):
        best = int(row.argmax())
        typer.echo(f"{name}\t{task.classes[best]}\t{float(row[best]):.3f}")
    if output is not None:
        table = pd.DataFrame(probabilities.numpy(), columns=list(task.classes))
        table.insert(0, "image", names)
        write_atomically(output, table.to_csv(index=False).encode())


@command
def cost(
    run: RunFolder,
    images: Annotated[int, typer.Option(help="Images of a task, support and queries.")] = 25,
    repeats: Annotated[int, typer.Option(help="Measurements of each time.")] = 30,
    output: Annotated[Path | None, typer.Option(help="JSON file; default: RUN/cost.json.")] = None,
    model: OwnModel = None,
    guide: OwnGuide = None,
    device: Device = "auto",
) -> None:
    """Measure what active sources and experts cost on this machine, in milliseconds and bytes."""
    from pyro_smat.cli.cost import calibrate_files
    from pyro_smat.inference.runs.custom import load_class

    table = calibrate_files(
        run,
        device=device,
        images=images,
        repeats=repeats,
        output=output,
        model_class=None if model is None else load_class(model),
        guide_class=None if guide is None else load_class(guide),
    )
    typer.echo(table)


@command
def monitor(
    state: Annotated[Path, typer.Argument(help="The monitor's state, RUN/monitor.json; updated in place.")],
    stream: Annotated[Path | None, typer.Argument(help="JSON lines with kl and entropy; default: stdin.")] = None,
    every: Annotated[bool, typer.Option(help="Print after every task, not only at the end or at an alarm.")] = False,
) -> None:
    """Follow a stream of routed tasks and tell when they are no longer like those of validation; exit code 1 then.

    The alarm is false with probability at most the state's alpha, over its whole life. `adapt --scores` writes such
    lines.
    """
    import json

    from pyro_smat.inference.deployment.monitoring import RoutingMonitor

    following = RoutingMonitor.load(state)
    reading = following.reading
    text = sys.stdin if stream is None else stream.read_text().splitlines()
    for number, line in enumerate(text, start=1):
        if not line.strip():
            continue
        try:
            scores = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"line {number} of the stream is not JSON ({error}); expected kl and entropy") from error
        raised, reading = reading.alarm, following.update(scores)
        if every or reading.alarm > raised:
            typer.echo(str(reading))
    following.save(state)
    if not every:
        typer.echo(str(reading))
    if reading.alarm:
        raise typer.Exit(1)


def _pool(config: Any, split: str, data: Path | None) -> tuple[Any, str]:
    """The images of a split, or of another folder or file, and what to call them."""
    from pyro_smat.inference.runs.assembly import build_pool

    named = getattr(config.data, split, None) or split
    return build_pool(config, None if data else named, data), data.stem if data else split


def _seed(seed: int | None) -> list[str]:
    return [] if seed is None else [f"seed={seed}"]


def _router_folder(run: Path) -> Path:
    return run if (run / "router.json").exists() else run / "router"


def _load(run: Path, device: str, model: str | None, guide: str | None) -> Any:
    from pyro_smat.inference import RoutedClassifier
    from pyro_smat.inference.runs.custom import load_class

    return RoutedClassifier.load(
        _router_folder(run),
        device=device,
        model_class=None if model is None else load_class(model),
        guide_class=None if guide is None else load_class(guide),
    )


def _data_of(run: Path) -> dict[str, Any]:
    import json

    return json.loads((_router_folder(run) / "router.json").read_text())["config"]["data"]


def _adapt(
    run: Path,
    support: Path,
    refine: str | None,
    seed: int | None,
    device: str,
    model: str | None,
    guide: str | None,
) -> Any:
    from pyro_smat.episodes.readers.folders import read_folder
    from pyro_smat.inference.deployment.refinement import parse_refinement

    classifier = _load(run, device, model, guide)
    data = classifier.router.config.data
    pool = read_folder(support, size=data.size, channels=data.channels)
    names = [pool.class_names[0][k] for k in pool.labels[:, 0].tolist()]
    mode = None if refine is None else parse_refinement(refine)
    return classifier.adapt(pool.images.float() / 255.0, names, seed=seed or 0, refine=mode)


def _print_metrics(metrics: dict[str, Any]) -> None:
    import pandas as pd

    columns = ["accuracy", "nll", "cvar_0.1", "regret_cvar_0.1", "ece"]
    typer.echo(pd.DataFrame(metrics["methods"]).T[columns].to_string(float_format="%.3f"))
    if metrics["misrouting_rate"] == metrics["misrouting_rate"]:
        typer.echo(f"misrouted: {100 * metrics['misrouting_rate']:.1f}% of episodes")


def main() -> None:
    """Entry point of the ``pyro-smat`` command."""
    app()


if __name__ == "__main__":
    main()
