"""Calibration of routing in the world: is q(route | support) the frequency with which routes are true?

Posteriors and known routes of held-out episodes -> PIT tests, effect size and reliability, over all episodes, among
episodes' sources that know routes, and for every condition; and conformal sets of routings. Needs no model of supports:
under label noise and confounding this is the only judge, because the model's own support likelihood fails there
first. What it cannot see is a posterior that never looks at the support: the frequencies of routes, said of every
episode, are calibrated; ``information`` sees that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pyro_smat.certificates.conformal import LabelSetThreshold, label_set_threshold
from pyro_smat.inference.diagnostics.calibration import POWER_REPEATS, PosteriorCalibration, catalog_calibration
from pyro_smat.inference.diagnostics.quantities import catalog_quantities
from pyro_smat.inference.diagnostics.reliability import ReliabilityFit, reliability_fit
from pyro_smat.inference.diagnostics.uniformity import FEWEST
from pyro_smat.metrics.arrays import FloatArray

BoolArray = npt.NDArray[np.bool_]
SMALLEST_MASS = 1e-12


@dataclass(frozen=True)
class RouteCalibration:
    """Calibration against known routes.

    Attributes:
        overall: over all episodes with a known route.
        given_known: q renormalised over the routings that are ever true, None where all are: a generalist that has
            prior mass and is never the true route makes the rest look under-confident.
        by_condition: condition -> the same as ``overall``, where it has at least 100 episodes.
        too_few: condition -> its number of episodes, where it has fewer.
        reliability: "all routings" and every routing by name -> isotonic reliability.
        accuracy, confidence: share of episodes whose most probable routing is true, and its mean probability.
        excluded: episodes whose route is not known.
    """

    overall: PosteriorCalibration
    given_known: PosteriorCalibration | None
    by_condition: Mapping[str, PosteriorCalibration]
    too_few: Mapping[str, int]
    reliability: Mapping[str, ReliabilityFit]
    accuracy: float
    confidence: float
    excluded: int


def route_calibration(
    probabilities: FloatArray,
    truth: np.ndarray,
    *,
    names: Sequence[str] = (),
    condition: Sequence[str] | np.ndarray | None = None,
    resamples: int = 200,
    power_repeats: int = POWER_REPEATS,
    seed: int = 0,
) -> RouteCalibration:
    """Calibration of routing posteriors against true routes.

    Args:
        probabilities: ``(B, J)`` q of every routing (or mean weight of every source), rows sum to 1.
        truth: ``(B,)`` the routing that is true, -1 where it is not known.
        names: of the J routings.
        condition: ``(B,)`` names such as "clean" and "label noise".
        resamples: of the reliability bands.
        power_repeats: simulations of the power.
        seed: of ties and bands.

    Raises:
        ValueError: for fewer than 100 episodes with a known route, or as :func:`catalog_calibration`.

    Example:
        >>> rng = np.random.default_rng(1)
        >>> q = rng.dirichlet(np.ones(3), 500)
        >>> truth = (q.cumsum(1) > rng.random((500, 1))).argmax(1)
        >>> route_calibration(q, truth, power_repeats=0).overall.p_value > 0.05
        True
    """
    q, truth = np.asarray(probabilities, dtype=np.float64), np.asarray(truth)
    known = truth >= 0
    if known.sum() < FEWEST:
        raise ValueError(
            f"{int(known.sum())} of {len(truth)} episodes have a known route; expected at least {FEWEST}: sample "
            "episodes from a pool whose attributes or domains are named, and say which source knows which"
        )
    q, truth = q[known], truth[known]
    names = list(names) or [str(j) for j in range(q.shape[1])]

    def calibrate(rows: FloatArray, true: np.ndarray, labels: Sequence[str], population: str) -> PosteriorCalibration:
        quantities = catalog_quantities(rows, names=labels)
        return catalog_calibration(
            rows, true, quantities, population=population, reference="route", seed=seed, power_repeats=power_repeats
        )

    overall = calibrate(q, truth, names, f"{len(q)} episodes with a known route")
    ever = np.unique(truth)
    given = None
    if 1 < len(ever) < q.shape[1]:
        mass = np.clip(q[:, ever], SMALLEST_MASS, None)
        given = calibrate(
            mass / mass.sum(1, keepdims=True),
            np.searchsorted(ever, truth),
            [names[j] for j in ever],
            f"{len(q)} episodes, given one of {', '.join(names[j] for j in ever)}",
        )
    conditions = np.full(len(q), "all") if condition is None else np.asarray(condition)[known]
    sizes = {str(name): int((conditions == name).sum()) for name in np.unique(conditions)}
    several = len(sizes) > 1
    return RouteCalibration(
        overall=overall,
        given_known=given,
        by_condition={
            name: calibrate(q[conditions == name], truth[conditions == name], names, f"{size} episodes: {name}")
            for name, size in sizes.items()
            if several and size >= FEWEST
        },
        too_few={name: size for name, size in sizes.items() if size < FEWEST},
        reliability={"all routings": reliability_fit(q, truth, resamples=resamples, seed=seed)}
        | {names[j]: reliability_fit(q, truth, routing=int(j), resamples=resamples, seed=seed) for j in ever},
        accuracy=float((q.argmax(1) == truth).mean()),
        confidence=float(q.max(1).mean()),
        excluded=int((~known).sum()),
    )


@dataclass(frozen=True)
class RoutingSets:
    """Sets of routings that hold the true one as often as said; their size is an uncertainty.

    Attributes:
        threshold: a routing is in the set when its probability is at least 1 - threshold.
        statement: what is guaranteed, about whom.
    """

    threshold: LabelSetThreshold
    statement: str

    def sets(self, probabilities: FloatArray) -> BoolArray:
        """``(B, J)`` bool; the most probable routing is always in."""
        found = self.threshold.sets(probabilities)
        found[np.arange(len(found)), np.asarray(probabilities).argmax(1)] = True
        return found

    def size(self, probabilities: FloatArray) -> np.ndarray:
        """``(B,)`` number of routings in each set: 1 is sure, J knows nothing."""
        return self.sets(probabilities).sum(1)


def routing_sets(probabilities: FloatArray, truth: np.ndarray, coverage: float = 0.9) -> RoutingSets:
    """Split conformal sets of routings from calibration episodes with known routes (Sadinle et al. 2019).

    Valid whether or not the posterior is calibrated; a sharper posterior makes smaller sets.

    Args:
        probabilities: ``(B, J)`` of episodes that had no part in training or in any choice.
        truth: ``(B,)`` true routing, -1 where it is not known (left out).
        coverage: in (0, 1).

    Raises:
        ValueError: for too few episodes for this coverage, or as :func:`label_set_threshold`.
    """
    known = np.asarray(truth) >= 0
    found = label_set_threshold(np.asarray(probabilities)[known], np.asarray(truth)[known], coverage)
    if np.isinf(found.threshold):
        raise ValueError(
            f"{int(known.sum())} episodes with a known route are too few for sets of coverage {coverage:g}; expected "
            f"at least {int(np.ceil(coverage / (1 - coverage)))}"
        )
    return RoutingSets(
        found,
        f"sets hold the true routing with probability at least {100 * coverage:g}%, over calibration and new episodes "
        f"together (split conformal, {found.episodes} episodes), not for each condition",
    )
