"""Episode losses and hooks: what counts of an observed site, by hand."""

from __future__ import annotations

import math
from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor
from torch.nn import functional as F

from pyro_smat.inference import CVaR_ELBO

LOGITS = torch.randn(4, 3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
LABELS = torch.tensor([[0, 1, 2], [3, 4, 0], [1, 1, 1], [2, 0, 4]])
MASK = torch.tensor([[True, True, True], [True, False, False], [True, True, False], [False, False, False]])
NLL = F.cross_entropy(LOGITS.flatten(0, 1), LABELS.flatten(), reduction="none").view(4, 3)


def model(mask: Tensor | bool | None = None, scale: float = 1.0) -> Callable[[], None]:
    def program() -> None:
        with pyro.plate("episodes", 4, dim=-2), pyro.plate("queries", 3, dim=-1), poutine.scale(scale=scale):
            if mask is None:
                pyro.sample("y", dist.Categorical(logits=LOGITS), obs=LABELS)
            else:
                with poutine.mask(mask=mask):
                    pyro.sample("y", dist.Categorical(logits=LOGITS), obs=LABELS)

    return program


def no_guide() -> None:
    pass


def losses(program: Callable[[], None], episode_loss: str | Callable) -> Tensor:
    return CVaR_ELBO(rho=1.0, episode_loss=episode_loss).terms(program, no_guide).episode_losses


def by_hand(mask: Tensor, values: Tensor, mean: bool) -> Tensor:
    rows = []
    for row, shown in zip(values, mask, strict=True):
        kept = [v for v, m in zip(row.tolist(), shown.tolist(), strict=True) if m]
        rows.append(sum(kept) / (max(len(kept), 1) if mean else 1))
    return torch.tensor(rows, dtype=values.dtype)


POINTWISE = {"nll": (NLL, False), "mean_nll": (NLL, True), "expected_error": (1 - (-NLL).exp(), True)}


@pytest.mark.parametrize("mask", [None, True, MASK, MASK[0], MASK[:, :1], torch.tensor(True)])
@pytest.mark.parametrize("name", POINTWISE)
def test_losses_by_hand(name: str, mask: Tensor | bool | None) -> None:
    values, mean = POINTWISE[name]
    full = torch.ones(4, 3, dtype=torch.bool) if mask is None or mask is True else torch.as_tensor(mask).expand(4, 3)
    torch.testing.assert_close(losses(model(mask), name), by_hand(full, values, mean))


@pytest.mark.parametrize("name", POINTWISE)
def test_everything_masked_is_zero(name: str) -> None:
    assert losses(model(mask=False), name).abs().max() == 0


@pytest.mark.parametrize("name", POINTWISE)
def test_constant_scale_multiplies_the_loss(name: str) -> None:
    torch.testing.assert_close(losses(model(MASK, scale=3.0), name), 3.0 * losses(model(MASK), name))


@pytest.mark.parametrize("name", POINTWISE)
def test_masked_points_of_zero_probability_cost_nothing(name: str) -> None:
    """A masked point may be impossible: neither the value nor the gradient may become NaN."""
    logits = LOGITS.clone()
    logits[1, 2, 0] = -math.inf  # the label there is 0, and masked
    logits.requires_grad_()

    def program() -> None:
        with pyro.plate("episodes", 4, dim=-2), pyro.plate("queries", 3, dim=-1), poutine.mask(mask=MASK):
            pyro.sample("y", dist.Categorical(logits=logits), obs=LABELS)

    terms = CVaR_ELBO(rho=1.0, episode_loss=name).terms(program, no_guide)
    values, mean = POINTWISE[name]
    torch.testing.assert_close(terms.episode_losses, by_hand(MASK, values, mean))


@pytest.mark.parametrize("name", POINTWISE)
def test_without_an_inner_plate_every_episode_is_one_point(name: str) -> None:
    """Nothing to average over inside an episode; in particular not over the episodes."""

    def program() -> None:
        with pyro.plate("episodes", 4, dim=-1):
            pyro.sample("y", dist.Categorical(logits=LOGITS[:, 0]), obs=LABELS[:, 0])

    torch.testing.assert_close(losses(program, name), POINTWISE[name][0][:, 0])


def test_mean_does_not_depend_on_padding(make_router: Callable) -> None:
    """An episode alone and the same one padded next to a larger one."""
    for name in ("mean_nll", "expected_error"):
        router = make_router("catalog")
        router.model.eval()
        elbo = CVaR_ELBO(rho=1.0, episode_loss=name)
        together = elbo.terms(router.model, router.guide, router.batch).episode_losses
        assert not router.batch.query_mask.all()
        for i in range(len(router.batch)):
            queries, shots = router.batch.query_mask[i].sum(), router.batch.support_mask[i].sum()
            one = router.batch[i : i + 1]
            one = type(one)(
                **vars(one)
                | {
                    "query_images": one.query_images[:, :queries],
                    "query_labels": one.query_labels[:, :queries],
                    "query_mask": one.query_mask[:, :queries],
                    "support_images": one.support_images[:, :shots],
                    "support_labels": one.support_labels[:, :shots],
                    "support_mask": one.support_mask[:, :shots],
                    "support_features": one.support_features[:, :, :shots],
                }
            )
            alone = elbo.terms(router.model, router.guide, one).episode_losses
            torch.testing.assert_close(alone[0], together[i])


def test_custom_hook_sees_the_site_and_its_inner_dims() -> None:
    seen = []

    def worst_point(site: dict, inner: tuple[int, ...]) -> Tensor:
        """Max over the points, put where the first point stands; the ELBO sums."""
        seen.append((site["name"], inner))
        worst = -site["log_prob"].amin(inner, keepdim=True)
        first = torch.zeros_like(site["log_prob"])
        first[..., 0] = 1.0
        return worst * first

    torch.testing.assert_close(losses(model(), worst_point), NLL.amax(-1))
    assert seen == [("y", (-1,))]


def test_clipped_hook_bounds_the_loss_and_its_gradient() -> None:
    shift = torch.zeros(4, 1, 1, dtype=torch.float64, requires_grad=True)

    def program() -> None:
        with pyro.plate("episodes", 4, dim=-2), pyro.plate("queries", 3, dim=-1):
            pyro.sample("y", dist.Categorical(logits=LOGITS * (1 + shift)), obs=LABELS)

    cap = NLL.sum(-1).sort().values[1:3].mean()

    def clipped(site: dict, inner: tuple[int, ...]) -> Tensor:
        total = -site["log_prob"].sum(inner, keepdim=True)
        return (total.clamp(max=cap) / cap / site["log_prob"].shape[-1]).expand_as(site["log_prob"])

    terms = CVaR_ELBO(rho=1.0, episode_loss=clipped).terms(program, no_guide)
    torch.testing.assert_close(terms.episode_losses, (NLL.sum(-1) / cap).clamp(max=1.0))
    terms.loss.backward()
    assert shift.grad is not None
    assert torch.equal(shift.grad.flatten() == 0, NLL.sum(-1) > cap)
