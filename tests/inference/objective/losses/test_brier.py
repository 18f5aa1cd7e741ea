"""The Brier score against scikit-learn, and the observations whose score is not known."""

from __future__ import annotations

from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
from sklearn.metrics import brier_score_loss
from torch import Tensor
from torch.nn import functional as F

from pyro_smat.inference import CVaR_ELBO

PROBS = torch.randn(4, 3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64).softmax(-1)
LABELS = torch.tensor([[0, 1, 2], [3, 4, 0], [1, 1, 1], [2, 0, 4]])
MASK = torch.tensor([[True, True, True], [True, False, False], [True, True, False], [False, False, False]])


def losses(program: Callable[[], None]) -> Tensor:
    return CVaR_ELBO(rho=1.0, episode_loss="brier").terms(program, lambda: None).episode_losses


def test_brier_is_half_the_brier_score() -> None:
    """Against sklearn, by episode, and for the same coins as Bernoulli, Categorical and one-hot observations."""
    p = PROBS[..., 0]
    labels = (LABELS % 2).double()
    both = torch.stack([1 - p, p], -1)
    one_hot = F.one_hot(labels.long(), 2).double()

    def program(fn: dist.Distribution, obs: Tensor) -> Callable[[], None]:
        def run() -> None:
            with pyro.plate("episodes", 4, dim=-2), pyro.plate("queries", 3, dim=-1):
                pyro.sample("y", fn, obs=obs)

        return run

    expected = torch.tensor([brier_score_loss(y, q) for y, q in zip(labels.numpy(), p.numpy(), strict=True)])
    for fn, obs in (
        (dist.Bernoulli(p), labels),
        (dist.Categorical(both), labels),
        (dist.OneHotCategorical(both), one_hot),
    ):
        torch.testing.assert_close(losses(program(fn, obs)), expected.to(p))


@pytest.mark.parametrize(
    ("fn", "kind"),
    [
        (dist.Normal(LABELS.double(), 1.0), "Normal"),
        (dist.Bernoulli(PROBS).to_event(1), "Independent"),
        (dist.Categorical(PROBS).mask(MASK), "MaskedDistribution"),
    ],
)
def test_brier_refuses_what_it_does_not_know(fn: dist.TorchDistribution, kind: str) -> None:
    def program() -> None:
        with pyro.plate("episodes", 4, dim=-2), pyro.plate("queries", 3, dim=-1):
            pyro.sample("label", fn, obs=fn.sample())

    with pytest.raises(
        ValueError, match=f"episode_loss Brier at site 'label': the Brier score of a {kind} is not known"
    ):
        losses(program)
