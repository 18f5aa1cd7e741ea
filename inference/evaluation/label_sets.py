"""Label sets with a coverage that is kept on new accepted tasks, from held-out episodes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from pyro_smat.certificates import LabelSetThreshold, label_set_threshold
from pyro_smat.inference.deployment.classifier import RoutedClassifier
from pyro_smat.inference.evaluation.evaluation import Evaluation


def calibrate_label_sets(
    classifier: RoutedClassifier, evaluation: Evaluation, coverage: float = 0.9, population: str | None = None
) -> LabelSetThreshold:
    """Label sets for the queries of accepted tasks (:meth:`AdaptedTask.predict_sets`).

    The coverage is that of queries of new *accepted* episodes; tasks that abstain get all classes.

    Args:
        classifier: as deployed.
        evaluation: held-out episodes that had no part in any choice, e.g. those of :func:`certify_run`.
        coverage: in (0, 1).
        population: what they were drawn from.

    Raises:
        ValueError: for a coverage outside (0, 1), or where every episode is abstained on.
    """
    deployment = classifier.deployment
    accepted = ~deployment.abstains(evaluation.scores)
    if not accepted.any():
        raise ValueError("the router abstains on every episode; expected accepted ones to calibrate label sets on")
    rows = accepted[evaluation.episode]
    found = label_set_threshold(
        evaluation.probabilities[deployment.method][rows],
        evaluation.labels[rows],
        coverage,
        episode=evaluation.episode[rows].astype(np.float64),
    )
    return replace(found, population=f"accepted tasks among {population or found.population}")
