r"""PAC-Bayes over the parameters of a router: an extra, looser than held-out episodes.

When the episodes that are to certify also trained the router, bounds from held-out episodes do not apply. What does
is a bound over all posteriors Q of the router's *parameters* :math:`\psi` at once, for a prior P fixed before: with
probability :math:`1 - \delta`

.. math:: kl\bigl(E_{\psi \sim Q} \hat R(\psi) \,\|\, E_{\psi \sim Q} R(\psi)\bigr) \le
          \frac{KL(Q \| P) + \ln(2 \sqrt N / \delta)}{N}

(Maurer 2004). It pays for the divergence of all trained parameters, and it speaks of the router whose parameters are
drawn from Q. The KL of the *routing* posterior q(c | S) has no place here: a router that memorises supports has none.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy.optimize import brentq
from scipy.special import xlogy

from pyro_smat.certificates.certificate import Certificate, check_delta
from pyro_smat.certificates.mean import betting_bound
from pyro_smat.metrics.arrays import FloatArray, Numbers, float_array
from pyro_smat.metrics.risk import check_rho, cvar

_THRESHOLDS = np.arange(20) / 20
_NOTE = "PAC-Bayes over router parameters: looser than held-out episodes, and about a router drawn from Q"


def gaussian_kl(mean: Numbers, scale: Numbers, prior_mean: Numbers, prior_scale: float) -> float:
    r"""KL of N(mean, diag scale^2) from N(prior_mean, prior_scale^2 I), in nats.

    .. math:: \tfrac12 \sum_j \Bigl( \frac{s_j^2}{s_0^2} - 1 - \ln \frac{s_j^2}{s_0^2} +
              \frac{(\psi_j - \psi_{0j})^2}{s_0^2} \Bigr)

    Args:
        mean, scale, prior_mean: ``(p,)`` over the parameters.
        prior_scale: one number > 0. To choose it from a grid of J values, divide delta by J.

    Raises:
        ValueError: for scales that are not positive.
    """
    m, s, m0 = (float_array(v, name) for v, name in ((mean, "mean"), (scale, "scale"), (prior_mean, "prior mean")))
    if not prior_scale > 0 or s.min() <= 0:
        raise ValueError(f"scales go down to {s.min():g} and the prior's is {prior_scale:g}; expected numbers > 0")
    ratio = np.square(s / prior_scale)
    return float(0.5 * (ratio - 1 - np.log(ratio) + np.square((m - m0) / prior_scale)).sum())


def kl_inverse(value: float, budget: float) -> float:
    r""":math:`\sup\{b \ge a : kl(a \| b) \le c\}` for a = ``value`` in [0, 1] and c = ``budget`` >= 0."""
    if value >= 1 or budget == 0:
        return value

    def excess(b: float) -> float:
        return float(
            xlogy(value, value) - xlogy(value, b) + xlogy(1 - value, 1 - value) - xlogy(1 - value, 1 - b) - budget
        )

    highest = math.nextafter(1.0, 0.0)
    return 1.0 if excess(highest) <= 0 else float(brentq(excess, max(value, 1e-300), highest, xtol=1e-12)) + 1e-12


def pac_bayes_mean_bound(losses: Numbers, kl: float, delta: float = 0.05) -> Certificate:
    """A bound of the mean loss of a router with parameters from Q, from the episodes that may have trained it.

    Half of delta goes into the expectation over Q, bounded by betting on the averages of m draws.

    Args:
        losses: ``(m, N)`` in [0, 1]: the losses of m independent draws from Q on the N episodes.
        kl: KL(Q || P) in nats over all parameters that these episodes have trained.
        delta: failure probability.

    Raises:
        ValueError: for losses outside [0, 1], a negative KL, or a delta outside (0, 1).
    """
    x = _checked(losses, kl, delta)
    bound = _bound(x.mean(1), kl, x.shape[1], delta / 2, delta / 2)
    return Certificate(bound, float(x.mean()), delta, x.shape[1], "mean", "pac-bayes", note=_NOTE)


def pac_bayes_cvar_bound(losses: Numbers, rho: float, kl: float, delta: float = 0.05) -> Certificate:
    r"""The same for CVaR, through :math:`t + E(X - t)_+ / \rho` on a grid of 20 thresholds that share delta.

    Arguments and errors as in :func:`pac_bayes_mean_bound`, and ``rho`` in (0, 1].
    """
    x = _checked(losses, kl, delta)
    check_rho(rho)
    share = delta / (2 * len(_THRESHOLDS))
    bounds = [
        t + (1 - t) / rho * _bound((np.maximum(x - t, 0) / (1 - t)).mean(1), kl, x.shape[1], share, share)
        for t in _THRESHOLDS
    ]
    estimate = cvar(torch.from_numpy(x), rho).mean().item()
    return Certificate(min(1.0, *bounds), estimate, delta, x.shape[1], "CVaR", "pac-bayes", rho, note=_NOTE)


def _bound(averages: FloatArray, kl: float, count: int, delta_of_data: float, delta_of_draws: float) -> float:
    """From the average losses ``(m,)`` of the draws."""
    expected = betting_bound(averages, delta_of_draws)
    return kl_inverse(expected, (kl + math.log(2 * math.sqrt(count) / delta_of_data)) / count)


def _checked(losses: Numbers, kl: float, delta: float) -> FloatArray:
    x = float_array(losses, "losses", ndim=2)
    check_delta(delta)
    if x.min() < 0 or x.max() > 1:
        raise ValueError(f"losses range from {x.min():g} to {x.max():g}; expected [0, 1]")
    if not kl >= 0:
        raise ValueError(f"kl is {kl!r}; expected a divergence >= 0, in nats")
    return x
