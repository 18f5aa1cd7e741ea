"""Quantities whose PIT values calibration looks at: what each one sees that the others do not.

================== =========================================================================================
log q              the highest-density sets: a posterior that is too sharp or too flat, in any direction
log p(S | c)       depends on the data: the only one that sees a guide that has not looked at them at all
                   (a prior used as a guide passes every other test; Modrák et al. 2023)
is NAME            one routing's probability: a bias towards it
weight of NAME     the posterior of one source's weight, where routings mix sources
distance (TARP)    to a reference that depends on the support (Lemos et al. 2023)
================== =========================================================================================
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pyro_smat.metrics.arrays import FloatArray

MOST_INDICATORS = 8
LOG_Q, LOG_LIKELIHOOD, DISTANCE = "log q", "log p(S | c)", "distance (TARP)"


def catalog_quantities(
    probabilities: FloatArray,
    *,
    names: Sequence[str] = (),
    log_likelihood: FloatArray | None = None,
    coefficients: FloatArray | None = None,
    sources: Sequence[str] = (),
    references: FloatArray | None = None,
) -> dict[str, FloatArray]:
    """Every quantity that applies to a catalog, each ``(N, J)``.

    Args:
        probabilities: ``(N, J)`` q.
        names: of the J routings, default their numbers. Of more than eight routings only those with most posterior mass
            get an indicator: every test costs power.
        log_likelihood: ``(N, J)`` log p(S | A_j), where the model generates supports.
        coefficients: ``(J, C)`` of the routings (blocks flattened), default one-hot.
        sources: names of the sources, whose weights are the first coefficients; only where routings are mixtures.
        references: ``(N, C)`` points that depend on the support; default the routing of largest likelihood, and no TARP
            without likelihood.
    """
    episodes, routings = probabilities.shape
    names = list(names) or [str(j) for j in range(routings)]
    weights = np.eye(routings) if coefficients is None else np.asarray(coefficients, dtype=np.float64)
    with np.errstate(divide="ignore"):
        found = {LOG_Q: np.log(probabilities)}
    if log_likelihood is not None:
        found[LOG_LIKELIHOOD] = np.asarray(log_likelihood, dtype=np.float64)
    common = np.argsort(-probabilities.mean(0))[:MOST_INDICATORS]
    indicators = np.eye(routings)
    for j in sorted(common.tolist()) if routings > 2 else [0]:
        found[f"is {names[j]}"] = np.broadcast_to(indicators[j], (episodes, routings))
    if ((weights > 0) & (weights < 1)).any():
        for r, name in enumerate(sources):
            found[f"weight of {name}"] = np.broadcast_to(weights[:, r], (episodes, routings))
    if references is None and log_likelihood is not None:
        references = weights[np.asarray(log_likelihood).argmax(1)]
    if references is not None:
        distances = np.linalg.norm(weights - references[:, None], axis=-1)
        found[DISTANCE] = distances.round(9)  # equal distances are ties
    return found
