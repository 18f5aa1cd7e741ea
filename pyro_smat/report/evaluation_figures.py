"""The figures of a report, from evaluations: what :mod:`pyro_smat.report.figures` draws of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from pyro_smat.inference.decision.deployment import Deployment
from pyro_smat.inference.evaluation.evaluation import Evaluation
from pyro_smat.metrics import reliability_curve, risk_coverage_curve
from pyro_smat.metrics.intervals import episode_interval
from pyro_smat.report.figures import (
    FEW,
    accuracy_dots,
    entropy_histogram,
    reliability_figure,
    risk_coverage_figure,
    routing_heatmap,
)
from pyro_smat.report.training_figure import training_curves


def evaluation_figures(
    deployment: Deployment,
    evaluations: Mapping[str, Evaluation],
    methods: Mapping[str, str],
    *,
    history: pd.DataFrame | None = None,
    route_names: Sequence[str] = (),
    figures_of: Sequence[str] | None = None,
) -> tuple[tuple[str, Figure], ...]:
    """Captions and figures.

    Args:
        deployment: whose rule and score they are about.
        evaluations: condition -> evaluation.
        methods: method -> row, ours first.
        history: of training.
        route_names: names of the true routes, where they are known.
        figures_of: conditions that reliability and risk-coverage figures show; default all.
    """
    rule = deployment.method
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
    score = deployment.scorer.title
    figures.append(
        (
            f"Risk and coverage. Mean loss of the surest tasks, by {score}.",
            risk_coverage_figure(
                {
                    c: (curve.coverage, curve.risk)
                    for c, e in shown.items()
                    for curve in [risk_coverage_curve(deployment.uncertainty(e.scores), e.loss(rule))]
                },
                "Mean loss of the kept tasks (nats)",
            ),
        )
    )
    figures.append(
        (
            "Reliability. Accuracy of the answers against their confidence; on the diagonal they agree. Open dots are "
            f"bins of fewer than {FEW} answers, mostly chance.",
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
    if all("entropy" in e.scores for e in evaluations.values()):
        figures.append(
            (
                "Entropy of the routing. It should be larger where the support is ambiguous or wrong.",
                entropy_histogram({c: e.scores["entropy"] for c, e in evaluations.items()}),
            )
        )
    if history is not None and len(history):
        figures.append(("Training. Every quantity against the step.", training_curves(history)))
    return tuple(figures)
