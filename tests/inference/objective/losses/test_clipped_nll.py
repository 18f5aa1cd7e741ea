"""The clipped log-loss: its values and where its gradient stops."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.nn import functional as F

from pyro_smat.inference import CVaR_ELBO
from pyro_smat.inference.objective.losses import ClippedNLL

LOGITS = torch.randn(4, 3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
LABELS = torch.tensor([[0, 1, 2], [3, 4, 0], [1, 1, 1], [2, 0, 4]])
NLL = F.cross_entropy(LOGITS.flatten(0, 1), LABELS.flatten(), reduction="none").view(4, 3)


def no_guide() -> None:
    pass


@pytest.mark.parametrize("clip", [0.7, 2.0])
def test_clipping_bounds_the_loss_and_its_gradient(clip: float) -> None:
    """min(nll, c) / c by point: a point above c pulls at nothing."""
    shift = torch.zeros(4, 3, 1, dtype=torch.float64, requires_grad=True)

    def program() -> None:
        with pyro.plate("episodes", 4, dim=-2), pyro.plate("queries", 3, dim=-1):
            pyro.sample("y", dist.Categorical(logits=LOGITS * (1 + shift)), obs=LABELS)

    terms = CVaR_ELBO(rho=1.0, episode_loss=ClippedNLL(clip=clip)).terms(program, no_guide)
    torch.testing.assert_close(terms.episode_losses, (NLL.clamp(max=clip) / clip).mean(-1))
    terms.loss.backward()
    assert shift.grad is not None
    above = NLL.gt(clip)
    assert 0 < above.sum() < above.numel()
    assert torch.equal(shift.grad.squeeze(-1) == 0, above)
    for wrong in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match=r"clip is .*; expected a bound > 0, in nats"):
            ClippedNLL(clip=wrong)
