"""From evaluations to a report: which tables, which figures, and what it lost.

The only module of the core, with the command line, that knows of inference: it reads its results.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd
import torch

from pyro_smat.inference.decision.abstention import AbstentionRule
from pyro_smat.inference.decision.fallback import SOURCE_0
from pyro_smat.inference.deployment.classifier import RoutedClassifier
from pyro_smat.inference.evaluation.certification import RunCertificates, certificate_name, certificate_remarks
from pyro_smat.inference.evaluation.evaluation import BEST_BY_SUPPORT, ORACLE, UNIFORM, Evaluation
from pyro_smat.metrics import aurc, expected_calibration_error, reliability_curve, risk_coverage_curve
from pyro_smat.metrics.intervals import bootstrap_interval, episode_interval
from pyro_smat.metrics.risk import cvar
from pyro_smat.report.figures import (
    accuracy_dots,
    entropy_histogram,
    reliability_figure,
    risk_coverage_figure,
    routing_heatmap,
    training_curves,
)
from pyro_smat.report.page import Cell, Report, Table, losing_sentences

RULE_NAMES = {
    "ensemble": "routed ensemble",
    "mean": "routed, posterior mean",
    "map": "routed, MAP",
    "top-k": "routed, top-k",
    "gibbs": "routed, one draw (Gibbs)",
    "fallback": "fallback (source 0)",
}


def build_report(
    classifier: RoutedClassifier,
    evaluations: Mapping[str, Evaluation],
    *,
    title: str,
    subtitle: str,
    command: str,
    history: pd.DataFrame | None = None,
    route_names: Sequence[str] = (),
    extra: Sequence[str] = (),
    figures_of: Sequence[str] | None = None,
    settings: Mapping[str, str] | None = None,
    certified: RunCertificates | None = None,
) -> Report:
    """A report of a router on one or more conditions.

    Args:
        classifier: the router; its decision rule is "ours".
        evaluations: condition -> evaluation; they share their methods.
        title, subtitle, command: see :class:`~pyro_smat.report.page.Report`.
        history: of training.
        route_names: names of the true routes, where they are known.
        extra: further methods (baselines) to show, after the rules.
        figures_of: conditions that reliability and risk-coverage figures show; default all.
        settings: further lines for the settings table.
        certified: bounds of the deployed system, for a table of their own.
    """
    rule = classifier.router.config.decision.rule
    first = next(iter(evaluations.values()))
    methods = _methods(rule, first, extra, classifier.abstention.fallback)
    ours = methods[rule]
    tables = (
        _table(
            "Accuracy",
            "Share of queries that are right, mean over episodes with its 95% interval.",
            evaluations,
            methods,
            lambda e, m: _scaled(episode_interval(e.accuracy(m)), 100),
            True,
            "%",
        ),
        _table(
            "Tail of the loss, CVaR 0.1",
            "Mean loss of the worst tenth of the episodes, in nats per query (bootstrap interval).",
            evaluations,
            methods,
            lambda e, m: _tail(e.loss(m)),
            False,
            "nats",
        ),
        _table(
            "Tail regret, CVaR 0.1",
            "The same for the loss minus that of the best single source in hindsight: what routing could have changed.",
            evaluations,
            methods,
            lambda e, m: _tail(e.regret(m)),
            False,
            "nats",
        ),
        _table(
            "Negative log-likelihood",
            "Mean over episodes, in nats per query; a proper score of the probabilities.",
            evaluations,
            methods,
            lambda e, m: _scaled(episode_interval(e.loss(m)), 1),
            False,
            "nats",
        ),
        _table(
            "Calibration error (ECE)",
            "Gap between confidence and accuracy over 15 bins; 0 is perfect, and small samples never reach it.",
            evaluations,
            methods,
            lambda e, m: Cell(100 * expected_calibration_error(e.probabilities[m], e.labels)),
            False,
            "%",
        ),
    )
    return Report(
        title=title,
        subtitle=subtitle,
        summary=_headlines(evaluations, rule),
        tables=(
            *tables,
            *(() if certified is None else (_certificate_table(certified),)),
            _abstention_table(classifier, evaluations, rule),
            _score_table(classifier.abstention, evaluations, rule),
        ),
        figures=_figures(classifier, evaluations, rule, methods, history, route_names, figures_of),
        losses=losing_sentences(tables, ours),
        settings=_settings(classifier, evaluations) | dict(settings or {}),
        command=command,
    )


def _methods(rule: str, evaluation: Evaluation, extra: Sequence[str], fallback: str) -> dict[str, str]:
    """Method -> row name, ours first."""
    rules = [rule, *(m for m in RULE_NAMES if m != rule and m in evaluation.methods and m != "fallback")]
    rows = {m: RULE_NAMES[m] for m in rules}
    rows |= {m: m for m in (*extra, UNIFORM) if m in evaluation.methods}
    at_source_0 = fallback == SOURCE_0 and evaluation.source_names
    rows |= {"fallback": f"{evaluation.source_names[0]} (source 0)" if at_source_0 else f"fallback ({fallback})"}
    rows |= {m: m for m in (BEST_BY_SUPPORT, ORACLE) if m in evaluation.methods}
    return rows


def _table(
    title: str,
    note: str,
    evaluations: Mapping[str, Evaluation],
    methods: Mapping[str, str],
    cell: Callable[[Evaluation, str], Cell],
    higher_is_better: bool,
    unit: str,
) -> Table:
    rows = tuple((row, tuple(cell(e, method) for e in evaluations.values())) for method, row in methods.items())
    references = (ORACLE,) if ORACLE in methods else ()
    return Table(title, note, tuple(evaluations), rows, higher_is_better, unit, references=references)


def _scaled(interval: object, factor: float) -> Cell:
    value, low, high = (getattr(interval, name) * factor for name in ("value", "low", "high"))
    return Cell(value, low, high)


def _tail(values: np.ndarray) -> Cell:
    interval = bootstrap_interval(values, lambda x: cvar(torch.from_numpy(np.ascontiguousarray(x)), 0.1).item(), seed=0)
    return Cell(interval.value, interval.low, interval.high)


def _headlines(evaluations: Mapping[str, Evaluation], rule: str) -> tuple[str, ...]:
    names = {rule: RULE_NAMES[rule], BEST_BY_SUPPORT: BEST_BY_SUPPORT}
    sentences = []
    if len(evaluations) > 1:
        by_place: dict[str, list[str]] = {}
        for condition in evaluations:
            by_place.setdefault(condition.rpartition(", ")[0], []).append(condition)
        place, conditions = list(by_place.items())[-1]
        means = {m: " / ".join(f"{100 * evaluations[c].accuracy(m).mean():.1f}" for c in conditions) for m in names}
        kinds = " / ".join(c.rpartition(", ")[2] for c in conditions)
        sentences.append(
            f"{place}, {kinds} supports: accuracy {means[rule]}% for the {names[rule]}, "
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


def _certificate_table(certified: RunCertificates) -> Table:
    columns = ("bound", "estimate", "level", "N", "method")
    rows = tuple(
        (
            certificate_name(c),
            (
                Cell(c.bound, text="" if c.informative else "uninformative"),
                Cell(c.estimate),
                Cell(100 * c.level, text=f"{100 * c.level:g}%"),
                Cell(c.count, text=f"{c.count:,}"),
                Cell(math.nan, text=c.method),
            ),
        )
        for c in certified.certificates
    )
    return Table(
        "Certificates",
        "What the deployed system loses on new episodes, routed or fallen back, is at most the bound. "
        + " ".join(certificate_remarks(certified.certificates, certified.delta)),
        columns,
        rows,
        False,
        "",
        references=tuple(name for name, _ in rows),
    )


def _abstention_table(classifier: RoutedClassifier, evaluations: Mapping[str, Evaluation], rule: str) -> Table:
    abstention = classifier.abstention
    outcomes = [e.with_abstention(rule, abstention) for e in evaluations.values()]
    rows = {
        "tasks routed (%)": [Cell(100 * o.coverage) for o in outcomes],
        "accuracy of those (%)": [Cell(100 * o.accepted_accuracy) for o in outcomes],
        "accuracy with fallback (%)": [Cell(100 * o.system_accuracy) for o in outcomes],
        "loss of routed tasks (nats)": [Cell(o.accepted_loss) for o in outcomes],
        "loss of the fallback on the others (nats)": [Cell(o.fallback_loss) for o in outcomes],
        "loss of the whole (nats)": [Cell(o.system_loss) for o in outcomes],
        "loss saved by each abstention (nats)": [Cell(o.gain, o.gain_low, o.gain_high) for o in outcomes],
        "misrouted tasks (%)": [Cell(100 * e.misrouting_rate()) for e in evaluations.values()],
    }
    if abstention.threshold == math.inf:
        note = f"Abstaining by {abstention.score} did not save loss on validation episodes: this router always routes."
    elif abstention.certificate is None:
        note = (
            f"Tasks whose {abstention.score} exceeds {abstention.threshold:.3f} (chosen on validation episodes) use "
            f"{abstention.fallback} instead; a negative saving means that abstaining hurt."
        )
    else:
        note = (
            f"Tasks whose {abstention.score} exceeds {abstention.threshold:.3f} use {abstention.fallback} instead. "
            f"Certified: {abstention.certificate}."
        )
    return Table(
        "Abstention and misrouting",
        note,
        tuple(evaluations),
        tuple((name, tuple(cells)) for name, cells in rows.items()),
        True,
        "",
        references=tuple(rows),
        digits=2,
    )


def _score_table(abstention: AbstentionRule, evaluations: Mapping[str, Evaluation], rule: str) -> Table:
    values = [{abstention.score: abstention.uncertainty(e.scores), **e.scores} for e in evaluations.values()]
    losses = [e.loss(rule) for e in evaluations.values()]
    names = dict.fromkeys((*next(iter(evaluations.values())).scores, abstention.score))
    rows = tuple((n, tuple(Cell(aurc(v[n], x)) for v, x in zip(values, losses, strict=True))) for n in names)
    chance = ("in random order", tuple(Cell(float(x.mean())) for x in losses))
    perfect = ("by the true loss", tuple(Cell(aurc(x, x)) for x in losses))
    return Table(
        "Uncertainty scores, area under the risk-coverage curve",
        "Mean loss of the surest tasks, averaged over all coverages; lower is a better score. Predictive entropy and "
        "disagreement look at the queries, the others at the support alone; this router uses "
        f"{_described(abstention)}.",
        tuple(evaluations),
        (*rows, chance, perfect),
        False,
        "nats",
        references=("in random order", "by the true loss"),
    )


def _described(abstention: AbstentionRule) -> str:
    if abstention.predictor is None:
        return abstention.score
    return f"the loss predicted from {', '.join(abstention.predictor.names)}"


def _figures(
    classifier: RoutedClassifier,
    evaluations: Mapping[str, Evaluation],
    rule: str,
    methods: Mapping[str, str],
    history: pd.DataFrame | None,
    route_names: Sequence[str],
    figures_of: Sequence[str] | None,
) -> tuple:
    shown = {c: evaluations[c] for c in (figures_of or evaluations)}
    dots = {
        condition: {
            row: (100 * i.value, 100 * i.low, 100 * i.high)
            for method, row in methods.items()
            for i in [episode_interval(e.accuracy(method))]
        }
        for condition, e in shown.items()
    }
    figures = [("Accuracy by condition. Dots with 95% intervals over episodes.", accuracy_dots(dots))]
    score = classifier.abstention.score
    figures.append(
        (
            f"Risk and coverage. Mean loss of the surest tasks, by {score}.",
            risk_coverage_figure(
                {
                    c: (curve.coverage, curve.risk)
                    for c, e in shown.items()
                    for curve in [risk_coverage_curve(classifier.abstention.uncertainty(e.scores), e.loss(rule))]
                },
                "Mean loss of the kept tasks (nats)",
            ),
        )
    )
    figures.append(
        (
            "Reliability. Accuracy of the answers against their confidence; on the diagonal they agree.",
            reliability_figure(
                {
                    c: (curve.confidence, curve.accuracy, curve.count)
                    for c, e in shown.items()
                    for curve in [reliability_curve(e.probabilities[rule], e.labels)]
                }
            ),
        )
    )
    if route_names:
        for condition, e in shown.items():
            weights = np.stack(
                [
                    e.weights[e.route == r].mean(0) if (e.route == r).any() else np.full(e.weights.shape[1], np.nan)
                    for r in range(len(route_names))
                ]
            )
            figures.append(
                (
                    f"Routing, {condition}. Mean weight on each source.",
                    routing_heatmap(weights, route_names, e.source_names),
                )
            )
    figures.append(
        (
            "Entropy of the routing. It should be larger where the support is ambiguous or wrong.",
            entropy_histogram({c: e.scores["entropy"] for c, e in evaluations.items()}),
        )
    )
    if history is not None and len(history):
        figures.append(("Training. Every quantity against the step.", training_curves(history)))
    return tuple(figures)


def _settings(classifier: RoutedClassifier, evaluations: Mapping[str, Evaluation]) -> dict[str, str]:
    config, library = classifier.router.config, classifier.router.library
    objective = config.objective
    return {
        "episodes per condition": ", ".join(sorted({str(len(e)) for e in evaluations.values()})),
        "way, shot, query": f"{config.episodes.way}, {config.episodes.shot}, {config.episodes.query}",
        "sources": f"{', '.join(library.names)} (d = {library.space.dim:,})",
        "experts": f"{config.experts.count}, at most {round(100 * (1 - config.experts.sparsity))}% of d open in each",
        "guide, prior": f"{config.guide.family}, {config.prior.kind}",
        "objective": f"{objective.episode_loss.kind}, rho {objective.rho}, tail weight {objective.tail_weight}, "
        f"KL weight {objective.kl_weight}, reference {objective.reference}",
        "training": f"{config.training.steps} steps of {config.training.episodes} episodes, seed {config.seed}",
        "rule": f"{config.decision.rule}, {config.decision.draws} draws",
    }
