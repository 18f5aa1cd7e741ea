"""From evaluations to a report: which tables, which figures, and what it lost.

The only part of the core, with the command line, that knows of inference: it reads its results.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import pandas as pd

from pyro_smat.inference.decision.deployment import Deployment
from pyro_smat.inference.deployment.classifier import RoutedClassifier
from pyro_smat.inference.evaluation.abstention import abstention_outcome, doubt_outcome
from pyro_smat.inference.evaluation.baselines import BEST_BY_SUPPORT
from pyro_smat.inference.evaluation.certification import RunCertificates
from pyro_smat.inference.evaluation.evaluation import Evaluation
from pyro_smat.metrics.intervals import episode_interval
from pyro_smat.report.evaluation_figures import evaluation_figures
from pyro_smat.report.example import Example
from pyro_smat.report.page import Report, losing_sentences
from pyro_smat.report.paired import paired_intervals
from pyro_smat.report.tables import (
    abstention_table,
    bounds_table,
    method_rows,
    method_tables,
    misrouting_table,
    score_table,
)


def build_report(
    classifier: RoutedClassifier,
    evaluations: Mapping[str, Evaluation],
    *,
    title: str,
    subtitle: str,
    command: str,
    history: pd.DataFrame | None = None,
    route_names: Sequence[str] = (),
    figures_of: Sequence[str] | None = None,
    settings: Mapping[str, str] | None = None,
    certified: RunCertificates | None = None,
    examples: Sequence[Example] = (),
) -> Report:
    """A report of a router on one or more conditions.

    Args:
        classifier: the router; the rule of its deployment is "ours".
        evaluations: condition -> evaluation; they share their methods.
        title, subtitle, command: see :class:`~pyro_smat.report.page.Report`.
        history: of training.
        route_names: names of the true routes, where they are known.
        figures_of: conditions that reliability and risk-coverage figures show; default all.
        settings: further lines for the settings table.
        certified: bounds of the deployed system, for a table of their own.
        examples: tasks with their images, of :func:`~pyro_smat.report.examples.example_tasks`.
    """
    deployment = classifier.deployment
    methods = method_rows(next(iter(evaluations.values())), deployment)
    tables = method_tables(evaluations, methods)
    return Report(
        title=title,
        subtitle=subtitle,
        summary=(*_headlines(evaluations, deployment.method), *_routing_headline(evaluations, deployment)),
        examples=tuple(examples),
        tables=(
            *tables,
            *(() if certified is None else (bounds_table(certified),)),
            misrouting_table(deployment, evaluations),
            abstention_table(deployment, evaluations),
            score_table(deployment, evaluations),
        ),
        figures=evaluation_figures(
            deployment, evaluations, methods, history=history, route_names=route_names, figures_of=figures_of
        ),
        losses=losing_sentences(
            tables, methods[deployment.method], paired_intervals(evaluations, methods, deployment.method)
        ),
        settings=_settings(classifier, evaluations) | dict(settings or {}),
        command=command,
    )


def _headlines(evaluations: Mapping[str, Evaluation], rule: str) -> tuple[str, ...]:
    """The deployed rule against the best source by support loss, where that has been run."""
    first = next(iter(evaluations.values()))
    if BEST_BY_SUPPORT not in first.methods:
        return ()
    title, sentences = first.method(rule).title, []
    if len(evaluations) > 1:
        by_place: dict[str, list[str]] = {}
        for condition in evaluations:
            by_place.setdefault(condition.rpartition(", ")[0], []).append(condition)
        place, conditions = list(by_place.items())[-1]
        means = {
            m: " / ".join(f"{100 * evaluations[c].accuracy(m).mean():.1f}" for c in conditions)
            for m in (rule, BEST_BY_SUPPORT)
        }
        kinds = " / ".join(c.rpartition(", ")[2] for c in conditions)
        sentences.append(
            f"{place}, {kinds} supports: accuracy {means[rule]}% for {title}, "
            f"{means[BEST_BY_SUPPORT]}% for the {BEST_BY_SUPPORT}."
        )
    for condition, evaluation in evaluations.items():
        ours, best = evaluation.accuracy(rule), evaluation.accuracy(BEST_BY_SUPPORT)
        gap = episode_interval(100 * (ours - best))
        sentences.append(
            f"{condition}: {100 * ours.mean():.1f}% accuracy against {100 * best.mean():.1f}% for the best source by "
            f"support loss (paired difference {gap.value:+.1f} points, 95% interval {gap.low:+.1f} to {gap.high:+.1f})."
        )
    return tuple(sentences)


def _routing_headline(evaluations: Mapping[str, Evaluation], deployment: Deployment) -> tuple[str, ...]:
    """How often it was misrouted, doubted and fell back, in one sentence."""
    parts = []
    for condition, evaluation in evaluations.items():
        doubt, outcome = doubt_outcome(evaluation, deployment), abstention_outcome(evaluation, deployment)
        routed = evaluation.misrouting_rate()
        said = "" if math.isnan(doubt.stated_misrouting) else f" ({100 * doubt.stated_misrouting:.0f}% stated)"
        misrouted = "true routes unknown" if math.isnan(routed) else f"{100 * routed:.0f}% misrouted{said}"
        parts.append(
            f"{condition}: {misrouted}, {100 * doubt.doubted:.0f}% doubted, "
            f"{100 * (1 - outcome.coverage):.0f}% fall back"
        )
    return (f"Of the tasks, {'; '.join(parts)}.",)


def _settings(classifier: RoutedClassifier, evaluations: Mapping[str, Evaluation]) -> dict[str, str]:
    config, library = classifier.router.config, classifier.router.library
    objective, rule = config.objective, classifier.deployment.rule
    return {
        "episodes per condition": ", ".join(sorted({str(len(e)) for e in evaluations.values()})),
        "way, shot, query": str(config.episodes),
        "sources": f"{', '.join(library.names)} (d = {library.space.dim:,})",
        "experts": f"{config.experts.count}, at most {round(100 * (1 - config.experts.sparsity))}% of d open in each",
        "guide, prior": f"{config.guide.kind}, {config.prior.kind}",
        "objective": f"{objective.episode_loss.kind}, rho {objective.rho}, tail weight {objective.tail_weight}, "
        f"KL weight {objective.kl_weight}, reference {objective.reference}",
        "training": f"{config.training.steps} steps of {config.training.episodes} episodes, seed {config.seed}",
        "rule": ", ".join(f"{value}" if key == "kind" else f"{key} {value}" for key, value in rule.to_dict().items()),
    }
