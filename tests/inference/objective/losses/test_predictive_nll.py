"""The ensemble's NLL as an episode loss: against brute force over the routings, and below the Gibbs loss."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_smat.inference import CVaR_ELBO

EPISODES, QUERIES, ROUTINGS, WAY = 5, 3, 4, 6
GENERATOR = torch.Generator().manual_seed(0)
Q_LOGITS = torch.randn(EPISODES, ROUTINGS, generator=GENERATOR, dtype=torch.float64)
LOGITS = torch.randn(ROUTINGS, EPISODES, QUERIES, WAY, generator=GENERATOR, dtype=torch.float64)
LABELS = torch.randint(0, WAY, (EPISODES, QUERIES), generator=GENERATOR)
MASK = torch.rand(EPISODES, QUERIES, generator=GENERATOR) < 0.7
MASK[:, 0] = True


def model(logits: Tensor) -> None:
    with pyro.plate("episodes", EPISODES, dim=-2):
        prior = dist.Categorical(logits=torch.zeros(ROUTINGS, dtype=torch.float64))
        routing = pyro.sample("routing", prior)
        chosen = logits[routing.squeeze(-1), torch.arange(EPISODES)]
        with pyro.plate("queries", QUERIES, dim=-1), pyro.poutine.mask(mask=MASK):
            pyro.sample("y", dist.Categorical(logits=chosen), obs=LABELS)


def guide(logits: Tensor) -> None:
    with pyro.plate("episodes", EPISODES, dim=-2):
        enumerated = {"enumerate": "parallel"}
        pyro.sample("routing", dist.Categorical(logits=Q_LOGITS.unsqueeze(1)), infer=enumerated)


def by_hand(logits: Tensor) -> Tensor:
    losses = []
    for i in range(EPISODES):
        kept = [j for j in range(QUERIES) if MASK[i, j]]
        total = torch.zeros((), dtype=torch.float64)
        for j in kept:
            p = sum(Q_LOGITS[i].softmax(-1)[k] * logits[k, i, j].softmax(-1)[LABELS[i, j]] for k in range(ROUTINGS))
            total = total - torch.log(torch.as_tensor(p))
        losses.append(total / len(kept))
    return torch.stack(losses)


@pytest.mark.parametrize("rho", [1.0, 0.4])
def test_value_and_gradient_against_brute_force(rho: float) -> None:
    ours, theirs = LOGITS.clone().requires_grad_(), LOGITS.clone().requires_grad_()
    elbo = CVaR_ELBO(rho=rho, episode_loss="predictive_nll", kl_weight=0.0, max_plate_nesting=2)
    with pytest.warns(UserWarning, match="episodes in the tail") if rho < 1 else torch.enable_grad():
        terms = elbo.terms(model, guide, ours)
    expected = by_hand(theirs)
    torch.testing.assert_close(terms.episode_losses, expected.detach())
    terms.loss.backward()
    (EPISODES * expected.sort(descending=True).values[: round(rho * EPISODES)].mean()).backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_never_above_the_gibbs_loss() -> None:
    ensemble, gibbs = (
        CVaR_ELBO(rho=1.0, episode_loss=name, max_plate_nesting=2).terms(model, guide, LOGITS).episode_losses
        for name in ("predictive_nll", "mean_nll")
    )
    assert (ensemble < gibbs).all()


def test_vectorised_particles_are_averaged_before_the_logarithm() -> None:
    def sampled(logits: Tensor) -> None:
        with pyro.plate("episodes", EPISODES, dim=-2):
            pyro.sample("u", dist.Normal(torch.zeros(EPISODES, 1, dtype=torch.float64), 1.0))

    def program(logits: Tensor) -> None:
        with pyro.plate("episodes", EPISODES, dim=-2):
            u = pyro.sample("u", dist.Normal(torch.zeros(EPISODES, 1, dtype=torch.float64), 1.0))
            with pyro.plate("queries", QUERIES, dim=-1):
                drawn.append(u.detach())
                pyro.sample("y", dist.Bernoulli(logits=u.expand(*u.shape[:-1], QUERIES)), obs=observed)

    drawn: list[Tensor] = []
    observed = (LABELS % 2).double()
    elbo = CVaR_ELBO(
        rho=1.0, episode_loss="predictive_nll", num_particles=7, vectorize_particles=True, max_plate_nesting=3
    )
    losses = elbo.terms(program, sampled, LOGITS).episode_losses
    p = torch.sigmoid(drawn[-1]).reshape(7, EPISODES, 1).mean(0)
    expected = -(observed * p.log() + (1 - observed) * (1 - p).log()).mean(-1)
    torch.testing.assert_close(losses, expected)


def test_particles_one_by_one_are_refused() -> None:
    with pytest.raises(ValueError, match="vectorize_particles=True"):
        CVaR_ELBO(episode_loss="predictive_nll", num_particles=2)
