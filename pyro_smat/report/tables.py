"""The tables of a report, from evaluations: one row a method, one column a condition."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
import torch

from pyro_smat.inference.decision.deployment import Deployment
from pyro_smat.inference.decision.scores import LearnedRisk
from pyro_smat.inference.evaluation.abstention import abstention_outcome, doubt_outcome
from pyro_smat.inference.evaluation.certificate_table import certificate_name, certificate_remarks
from pyro_smat.inference.evaluation.certification import RunCertificates
from pyro_smat.inference.evaluation.evaluation import Evaluation
from pyro_smat.metrics import aurc, expected_calibration_error
from pyro_smat.metrics.intervals import bootstrap_interval, episode_interval
from pyro_smat.metrics.risk import cvar
from pyro_smat.report.page import Cell, Table


def method_rows(evaluation: Evaluation, deployment: Deployment) -> dict[str, str]:
    """Method -> row: the deployed rule, other rules, baselines, and last what sees what nobody can know."""
    shown = {name: evaluation.method(name) for name in (deployment.method, *evaluation.methods)}
    ranks = {"rule": 1, "baseline": 2, "reference": 3}
    names = [name for name, method in shown.items() if method.role in ranks and name != deployment.method]
    ordered = [deployment.method, *sorted(names, key=lambda name: ranks[shown[name].role])]
    return {name: shown[name].title for name in ordered}


def method_tables(evaluations: Mapping[str, Evaluation], methods: Mapping[str, str]) -> tuple[Table, ...]:
    """Accuracy, tails, regret, likelihood and calibration error of every method."""
    return (
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


def bounds_table(certified: RunCertificates) -> Table:
    """The bounds of the deployed system."""
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


def abstention_table(deployment: Deployment, evaluations: Mapping[str, Evaluation]) -> Table:
    """What falling back did, who was doubted, and how often the routing was wrong."""
    outcomes = [abstention_outcome(e, deployment) for e in evaluations.values()]
    doubts = [doubt_outcome(e, deployment) for e in evaluations.values()]
    rows = {
        "tasks doubted (%)": [Cell(100 * d.doubted) for d in doubts],
        "wrong answers of reliable tasks (%)": [Cell(100 * d.reliable_error) for d in doubts],
        "wrong answers of doubted tasks (%)": [Cell(100 * d.doubted_error) for d in doubts],
        "tasks routed (%)": [Cell(100 * o.coverage) for o in outcomes],
        "accuracy of those (%)": [Cell(100 * o.accepted_accuracy) for o in outcomes],
        "accuracy with fallback (%)": [Cell(100 * o.system_accuracy) for o in outcomes],
        "loss of routed tasks (nats)": [Cell(o.accepted_loss) for o in outcomes],
        "loss of the fallback on the others (nats)": [Cell(o.fallback_loss) for o in outcomes],
        "loss of the whole (nats)": [Cell(o.system_loss) for o in outcomes],
        "loss saved by each fallback (nats)": [Cell(o.gain, o.gain_low, o.gain_high) for o in outcomes],
    }
    return Table(
        "Doubt and fallback",
        f"{_doubt_note(deployment)} {_fallback_note(deployment)}",
        tuple(evaluations),
        tuple((name, tuple(cells)) for name, cells in rows.items()),
        True,
        "",
        references=tuple(rows),
        digits=2,
    )


def misrouting_table(deployment: Deployment, evaluations: Mapping[str, Evaluation]) -> Table:
    """The stated probability of misrouting beside what happened, condition by condition."""
    doubts = {name: doubt_outcome(e, deployment) for name, e in evaluations.items()}
    rows = {
        "stated (%)": [Cell(100 * d.stated_misrouting) for d in doubts.values()],
        "misrouted tasks (%)": [_scaled(d.misrouting, 100) for d in doubts.values()],
    }
    off = [
        f"{name} ({100 * d.stated_misrouting:.0f}% stated, {100 * d.misrouting.value:.0f}% misrouted)"
        for name, d in doubts.items()
        if not math.isnan(d.stated_misrouting) and not d.misrouting_is_calibrated
    ]
    fitted = deployment.misrouting
    source = "is not calibrated" if fitted is None else f"was calibrated on {fitted.episodes} validation episodes"
    return Table(
        "Misrouting, stated and actual",
        f"The posterior's own probability that its top route is wrong {source}; 95% intervals of the actual share."
        + (f" Warning: not what happened in {'; '.join(off)}." if off else ""),
        tuple(evaluations),
        tuple((name, tuple(cells)) for name, cells in rows.items()),
        True,
        "",
        references=tuple(rows),
        digits=1,
    )


def _doubt_note(deployment: Deployment) -> str:
    reliability, certificate = deployment.reliability, deployment.certificate
    certified = "A statement, not a certificate." if certificate is None else f"Certified: {certificate}."
    if reliability is None:
        return f"Nothing was said of reliability: tasks that fall back are the doubted ones. {certified}"
    if not reliability.is_error:
        return f"Tasks whose {reliability.predictor.title} exceeds {reliability.tolerance:.3f} are doubted. {certified}"
    reads = ", ".join(score.title for score in reliability.predictor.reads)
    return (
        f"Tasks of which more than {100 * reliability.tolerance:.0f}% wrong answers are predicted (from {reads}) are "
        f"doubted. {certified}"
    )


def _fallback_note(deployment: Deployment) -> str:
    score = deployment.scorer.title
    if deployment.never_falls_back:
        return f"Falling back by {score} did not save loss on validation episodes: this router always routes."
    return (
        f"Tasks whose {score} exceeds {deployment.threshold:.3f} (chosen on validation episodes) use "
        f"{deployment.fallback} instead; a negative saving means that this hurt."
    )


POOLED = "all conditions"


def score_table(deployment: Deployment, evaluations: Mapping[str, Evaluation]) -> Table:
    """How well each score orders episodes by their loss, within each condition and over all of them together."""
    first = next(iter(evaluations.values()))
    losses = [e.loss(deployment.method) for e in evaluations.values()]
    own = deployment.scorer
    values = [{own.name: deployment.uncertainty(e.scores)} | dict(e.scores) for e in evaluations.values()]
    titles = {name: first.score_titles.get(name, name) for name in first.scores} | {own.name: own.title}
    used = [own.name] if not deployment.never_falls_back or deployment.reliability is None else []
    if deployment.reliability is not None:
        risk = "predicted risk"
        titles |= {risk: risk}
        used.append(risk)
        for v, e in zip(values, evaluations.values(), strict=True):
            v[risk] = deployment.reliability.predictor.of_values(e.scores)
    columns = tuple(evaluations)
    if len(evaluations) > 1:
        columns = (*columns, POOLED)
        values.append({name: np.concatenate([v[name] for v in values]) for name in titles})
        losses.append(np.concatenate(losses))
    areas = {name: [aurc(v[name], x) for v, x in zip(values, losses, strict=True)] for name in titles}
    chance = [float(x.mean()) for x in losses]
    worse = [
        f"{titles[name]} in {column} ({area:.3f} against {random:.3f})"
        for name in used
        for column, area, random in zip(columns, areas[name], chance, strict=True)
        if area > random
    ]
    rows = [(titles[name], tuple(Cell(area) for area in areas[name])) for name in titles]
    rows.append(("in random order", tuple(Cell(x) for x in chance)))
    rows.append(("by the true loss", tuple(Cell(aurc(x, x)) for x in losses)))
    return Table(
        "Uncertainty scores, area under the risk-coverage curve",
        "Mean loss of the surest tasks, averaged over all coverages; lower is a better score. Predictive entropy and "
        f"disagreement look at the queries, the others at the support alone; this router uses {_described(deployment)}."
        + (f" Warning: worse than random order: {'; '.join(worse)}." if worse else ""),
        columns,
        tuple(rows),
        False,
        "nats",
        references=("in random order", "by the true loss"),
    )


def _described(deployment: Deployment) -> str:
    score = deployment.scorer
    if not isinstance(score, LearnedRisk):
        return score.title
    return f"the loss predicted from {', '.join(one.title for one in score.reads)}"


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
    first = next(iter(evaluations.values()))
    references = tuple(row for name, row in methods.items() if first.method(name).role == "reference")
    return Table(title, note, tuple(evaluations), rows, higher_is_better, unit, references=references)


def _scaled(interval: object, factor: float) -> Cell:
    value, low, high = (getattr(interval, name) * factor for name in ("value", "low", "high"))
    return Cell(value, low, high)


def _tail(values: np.ndarray) -> Cell:
    interval = bootstrap_interval(values, lambda x: cvar(torch.from_numpy(x), 0.1).numpy(), seed=0, vectorized=True)
    return Cell(interval.value, interval.low, interval.high)
