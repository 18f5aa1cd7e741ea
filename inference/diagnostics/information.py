r"""Information and collapse: how much a routing posterior says of the episode, and three ways in which it says nothing.

.. math:: E_i\,\mathrm{KL}(q_i \| p) = \underbrace{E_i\,\mathrm{KL}(q_i \| \bar q)}_{\text{mutual information}} +
          \mathrm{KL}(\bar q \| p), \qquad \bar q = E_i\, q_i

(Hoffman and Johnson 2016), exact for a catalog. A posterior collapses to the *prior* (no mutual information: all
episodes get the same), to a *point* (no entropy left, and the temperature that calibrates it is far above 1), or to
*few routings* (the aggregate uses a fraction of the catalog). What training logs of every batch is
:func:`~pyro_smat.guides.information.posterior_information`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pyro_smat.guides.information import PosteriorInformation, posterior_information
from pyro_smat.inference.diagnostics.sharpness import Sharpness, temperature_estimate
from pyro_smat.metrics.arrays import FloatArray

__all__ = [
    "NegativeControl",
    "PosteriorInformation",
    "RoutingInformation",
    "information",
    "negative_control",
    "posterior_information",
]

FEWEST_EPISODES = 50
TO_PRIOR, TO_POINT, POINT_TEMPERATURE, FEW_SHARE = 0.05, 0.01, 2.0, 0.25


@dataclass(frozen=True)
class RoutingInformation:
    """Information of B posteriors over J routings, in nats.

    Attributes:
        mutual_information: of episode and routing, at most log B and log J.
        aggregate_kl: KL(aggregate || prior): routings are used as often as the prior says if it is 0.
        kl: their sum, the mean KL(q || prior) of the ELBO.
        entropy: mean entropy of the posteriors; prior_entropy: of the prior.
        effective_routings: exp of the aggregate's entropy, 1 to J; prior_routings: of the prior.
        active: ``(J,)`` variance over episodes of the probability of each routing: 0 is a routing that never reacts.
        temperature: how much too sharp, where truths were given.
        collapse: "none", "prior", "point" or "few routings".
    """

    mutual_information: float
    aggregate_kl: float
    kl: float
    entropy: float
    prior_entropy: float
    effective_routings: float
    prior_routings: float
    active: FloatArray
    temperature: Sharpness | None
    collapse: str


def information(probabilities: FloatArray, prior: FloatArray, *, truth: np.ndarray | None = None) -> RoutingInformation:
    """Information of posteriors over a catalog, with the verdict on collapse.

    "prior": mutual information below 5 % of the prior's entropy. "point": mean entropy below .01 nats; where ``truth``
    is given, only if the posterior is too sharp by a temperature above 2 as well, since easy episodes leave no doubt.
    "few routings": beyond one, the aggregate uses less than a quarter of the prior's effective number.

    Args:
        probabilities: ``(B, J)``, B >= 50.
        prior: ``(J,)``.
        truth: ``(B,)`` true routing, -1 where it is not known.

    Raises:
        ValueError: for fewer than 50 posteriors, or a routing that the prior forbids and a posterior uses.
    """
    q, p = np.asarray(probabilities, dtype=np.float64), np.asarray(prior, dtype=np.float64)
    if q.ndim != 2 or p.shape != q.shape[1:]:
        raise ValueError(f"probabilities are {q.shape} and the prior {p.shape}; expected (B, J) and (J,)")
    if len(q) < FEWEST_EPISODES:
        raise ValueError(f"got {len(q)} episodes; the aggregate posterior needs at least {FEWEST_EPISODES}")
    if not (np.allclose(q.sum(1), 1, atol=1e-4) and np.isclose(p.sum(), 1, atol=1e-4)):
        raise ValueError("rows of probabilities, or the prior, are no distributions; a point posterior has none")
    mean = q.mean(0)
    if (mean[p == 0] > 1e-9).any():
        bad = int(np.argmax((p == 0) & (mean > 1e-9)))
        raise ValueError(f"the prior forbids routing {bad} and the posteriors use it; expected the guide's own prior")
    entropy = float(_entropy(q).mean())
    mutual = max(0.0, float(_entropy(mean)) - entropy)
    with np.errstate(divide="ignore", invalid="ignore"):
        aggregate_kl = float(np.where(mean > 0, mean * (np.log(mean) - np.log(p)), 0.0).sum())
    temperature = None
    if truth is not None and (np.asarray(truth) >= 0).any():
        known = np.asarray(truth) >= 0
        temperature = temperature_estimate(q[known], np.asarray(truth)[known])
    prior_entropy, effective = float(_entropy(p)), float(np.exp(_entropy(mean)))
    sharp = temperature is None or temperature.estimate > POINT_TEMPERATURE
    if effective - 1 < FEW_SHARE * (np.exp(prior_entropy) - 1):
        collapse = "few routings"
    elif mutual < TO_PRIOR * prior_entropy:
        collapse = "prior"
    elif entropy < TO_POINT and sharp:
        collapse = "point"
    else:
        collapse = "none"
    return RoutingInformation(
        mutual_information=mutual,
        aggregate_kl=aggregate_kl,
        kl=mutual + aggregate_kl,
        entropy=entropy,
        prior_entropy=prior_entropy,
        effective_routings=effective,
        prior_routings=float(np.exp(prior_entropy)),
        active=q.var(0),
        temperature=temperature,
        collapse=collapse,
    )


@dataclass(frozen=True)
class NegativeControl:
    """The same guide on supports whose labels were permuted: nothing can be known of the routing there.

    Attributes:
        entropy, control_entropy: mean entropy on real and on permuted supports, in nats.
        information, control_information: mutual information likewise.
        passed: the control is less sure than the real supports, and less than half way from the prior's entropy to 0.
    """

    entropy: float
    control_entropy: float
    information: float
    control_information: float
    passed: bool


def negative_control(probabilities: FloatArray, control: FloatArray, prior: FloatArray) -> NegativeControl:
    """Does a posterior stay unsure where the support says nothing?

    A guide that concentrates on permuted supports concentrates on something else than labels: images alone, or habit.

    Args:
        probabilities, control: ``(B, J)`` on real supports and on the same ones with permuted labels.
        prior: ``(J,)``.
    """
    real, permuted = _entropy(np.asarray(probabilities)), _entropy(np.asarray(control))
    limit = 0.5 * float(_entropy(np.asarray(prior)))
    of_real = float(_entropy(probabilities.mean(0)) - real.mean())
    of_control = float(_entropy(control.mean(0)) - permuted.mean())
    passed = bool(permuted.mean() > real.mean() and permuted.mean() > limit)
    return NegativeControl(float(real.mean()), float(permuted.mean()), of_real, of_control, passed)


def _entropy(p: FloatArray) -> FloatArray:
    return -np.where(p > 0, p * np.log(np.where(p > 0, p, 1.0)), 0.0).sum(-1)
