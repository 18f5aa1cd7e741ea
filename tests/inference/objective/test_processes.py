"""The objective of one process among several, without starting any: its share of costs, and what it refuses.

Values and gradients over real processes are in tests/inference/training/test_distributed.py.
"""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_smat.distributed import World
from pyro_smat.inference.objective.cvar_elbo import CVaR_ELBO
from pyro_smat.inference.objective.score_function import Risk
from pyro_smat.inference.objective.sites import Layout
from pyro_smat.inference.objective.threshold import BatchThreshold


@pytest.mark.parametrize("rho", [0.1, 0.5, 1.0])
def test_fall_of_a_share_is_its_part_of_the_fall_of_all(rho: float) -> None:
    regret, by = torch.randn(2, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    tail = BatchThreshold()(regret, rho)

    def fall(mine: slice) -> Tensor:
        part = by[mine].unsqueeze(-1)
        return Risk(regret, tail, tail.loss(regret), 0.7, mine).fall(
            part, Layout("episodes", -2, len(part)), apart=True
        )

    torch.testing.assert_close(torch.cat([fall(slice(0, 4)), fall(slice(4, 9))]), fall(slice(0, 9)))


class OfTwo(World):
    """A process that is told that the other one has no episodes."""

    def gather(self, *columns: Tensor) -> tuple[tuple[Tensor, ...], slice]:
        return columns, slice(0, len(columns[0]))


def test_score_function_outside_the_episodes_is_refused() -> None:
    def model(y: Tensor) -> None:
        shift = pyro.sample("shift", dist.Bernoulli(0.5))
        with pyro.plate("episodes", len(y), dim=-2), pyro.plate("queries", y.shape[1], dim=-1):
            pyro.sample("y", dist.Normal(shift, 1.0), obs=y)

    def guide(y: Tensor) -> None:
        pyro.sample("shift", dist.Bernoulli(torch.tensor(0.4, requires_grad=True)))

    y = torch.zeros(6, 2)
    CVaR_ELBO(rho=1.0, world=World()).loss_and_grads(model, guide, y)
    with pytest.raises(ValueError, match=r"site 'shift' \(Bernoulli\) .* outside the plate 'episodes', which several"):
        CVaR_ELBO(rho=1.0, world=OfTwo(0, 2)).loss_and_grads(model, guide, y)
