"""CostWeight: the beta of the cost-aware priors, fixed or learned, and the beta at which a prior has a wanted cost."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from pyro.distributions import Gamma, TorchDistribution
from scipy.optimize import brentq
from torch import Tensor, nn

from pyro_smat.models.priors.prior import vector
from pyro_smat.routing.local_module import LocalModule


class CostWeight(LocalModule):
    """beta >= 0: how much log probability one unit of cost takes away.

    Args:
        beta: its (initial) value; > 0 when learned.
        learn: make it a parameter (empirical Bayes), positive through its logarithm.
        hyperprior: a distribution of one positive number, the density of beta itself, or (shape, rate) of a gamma
            density; only when learned.

    Raises:
        ValueError: for a beta outside its range, a hyperprior of something else, or one that nothing learned is under.
    """

    log_beta: Tensor
    fixed_beta: Tensor

    def __init__(
        self, beta: float, *, learn: bool = False, hyperprior: TorchDistribution | Sequence[float] | None = None
    ) -> None:
        super().__init__()
        if not 0 <= beta < math.inf:
            raise ValueError(f"beta is {beta}; expected a finite number >= 0 (0 is the uniform prior)")
        if learn and beta == 0:
            raise ValueError("beta is 0; expected a start > 0, as a learned beta moves by its logarithm")
        if hyperprior is not None and not learn:
            raise ValueError("a hyperprior of beta was given, but beta is fixed: pass learn=True")
        density = _gamma(hyperprior) if isinstance(hyperprior, Sequence) else hyperprior
        if density is not None and (density.batch_shape or density.event_shape):
            raise ValueError(
                f"the hyperprior of beta has batch shape {tuple(density.batch_shape)} and event shape "
                f"{tuple(density.event_shape)}; expected a distribution of one number"
            )
        self.learned, self.hyperprior = learn, density
        if learn:
            self.log_beta = nn.Parameter(torch.tensor(math.log(beta)))
        else:
            self.register_buffer("fixed_beta", torch.tensor(float(beta)))

    @property
    def beta(self) -> Tensor:
        """0-dim."""
        return self.log_beta.exp() if self.learned else self.fixed_beta

    def log_densities(self) -> dict[str, Tensor]:
        """The log density of beta under its hyperprior, if there is one."""
        if self.hyperprior is None:
            return {}
        return {"beta": self.hyperprior.log_prob(self.beta).to(self.beta)}  # it may live on another device


def solve_beta(expected_cost: Callable[[float], float], cheapest: float, target: float) -> float:
    """The beta >= 0 at which a decreasing ``expected_cost(beta)`` is ``target``.

    Args:
        expected_cost: falls from its value at beta = 0 towards ``cheapest``.
        cheapest: its limit for large beta, not attained.
        target: wanted expected cost, in units of the costs.

    Raises:
        ValueError: for a target out of reach, naming what can be reached.
    """
    costliest = expected_cost(0.0)
    if math.isclose(target, costliest, rel_tol=1e-6, abs_tol=1e-9):
        return 0.0
    if not cheapest < target < costliest:
        raise ValueError(
            f"target is {target}; expected a cost above {cheapest:g} (only the cheapest) and at most {costliest:g} "
            "(beta = 0): give one in that range"
        )
    upper = 1.0 / (costliest - cheapest)
    while expected_cost(upper) > target:
        upper *= 2.0
    return float(brentq(lambda beta: expected_cost(beta) - target, 0.0, upper, xtol=1e-12, rtol=1e-12))


def prices(costs: Tensor | Sequence[float] | None, size: int) -> Tensor:
    """The price of opening each source and expert, ``(size,)``; None: 0 for the fallback and 1 for every other.

    Raises:
        ValueError: unless there is one finite number for each.
    """
    if costs is None:
        return torch.cat([torch.zeros(1), torch.ones(size - 1)])
    found = vector(costs, size, "costs")
    if not torch.isfinite(found).all():
        raise ValueError(f"costs are {found.tolist()}; expected finite numbers (leave out what must not be used)")
    return found


def _gamma(values: Sequence[float]) -> Gamma:
    if len(values) != 2 or min(values) <= 0:
        raise ValueError(f"hyperprior of beta is {list(values)}; expected [shape, rate] of a gamma density, > 0")
    return Gamma(torch.tensor(float(values[0])), torch.tensor(float(values[1])))
