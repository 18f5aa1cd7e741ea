r"""Hard-concrete gates on the residual, learned by gradient descent, then the k largest blocks refitted.

:math:`\Delta = z \odot \delta` with a gate z a block and :math:`w = \mathrm{softmax}(\rho)`; Adam minimises
:math:`E_z f(w, z \odot \delta) + \lambda\, E \|z\|_0` from one draw a step (Louizos et al. 2018; the paper's third
surrogate), while lambda rises or falls until the expected number of open gates is the budget. That holds in expectation
only, so what counts in the end is an exact choice and a refit.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from pyro_smat.networks.gates import hard_concrete, open_probability
from pyro_smat.solvers.problem import Point, Problem
from pyro_smat.solvers.refit import Fit, refit

_STEPS, _ROUND = 1500, 100  # all, and between two refits
_RATE = 0.05
_LAMBDA_RATE = 0.02


def hard_concrete_gates(problem: Problem, start: Fit, seed: int = 0) -> Iterator[Fit]:
    """Train gates, values and routing logits; an iteration is a hundred steps and a refit.

    Args:
        problem: the task.
        start: gives the first weights and values.
        seed: of the noise of the gates.

    Yields:
        The refit of the k blocks that are largest by open probability times size.
    """
    if not problem.budget:
        return
    generator = torch.Generator().manual_seed(seed)
    of_entry = torch.from_numpy(problem.blocks.of_entry)
    logits = torch.from_numpy(np.log(start.point.weights + 1e-2)).requires_grad_()
    values = torch.from_numpy(start.point.residual(problem.size)).requires_grad_()
    gates = torch.ones(len(problem.blocks), dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.Adam([logits, values, gates], lr=_RATE)
    log_lambda = float(np.log(problem.scale / len(problem.blocks)))
    for step in range(1, _STEPS + 1):
        noise = torch.rand(len(gates), generator=generator, dtype=torch.float64)
        weights = logits.softmax(0)
        residual = hard_concrete(gates, noise)[of_entry] * values
        expected = open_probability(gates).sum()
        point = Point.from_residual(weights.detach().numpy(), residual.detach().numpy())
        slope = problem.gradient(point)
        surrogate = torch.from_numpy(slope.weights) @ weights + torch.from_numpy(slope.residual) @ residual
        surrogate = surrogate + problem.ridge / 2 * residual.square().sum() + float(np.exp(log_lambda)) * expected
        optimiser.zero_grad()
        surrogate.backward()
        optimiser.step()
        log_lambda += _LAMBDA_RATE * float(np.clip(np.log(expected.item() / problem.budget), -1, 1))
        if step % _ROUND == 0:
            with torch.no_grad():
                sizes = (open_probability(gates)[of_entry] * values).numpy()
            yield refit(problem, problem.blocks.largest(sizes, problem.budget), start)
