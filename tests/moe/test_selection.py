"""Sampling without replacement against multinomial, Plackett-Luce against enumeration, bugs of others not ours."""

from __future__ import annotations

import itertools

import pytest
import torch
from families import run, tiny

from pyro_smat.moe import Chosen, RouterCall, attach
from pyro_smat.moe.selection import PlackettLuce, sample_without_replacement, straight_through_factor
from pyro_smat.moe.weighting import Weighting

LOGITS = torch.tensor([1.0, 0.2, -0.5, 0.8, -1.5])


def inclusion_by_enumeration(k: int) -> torch.Tensor:
    p = LOGITS.softmax(-1)
    total = torch.zeros(5)
    for order in itertools.permutations(range(5), k):
        probability, left = 1.0, 1.0
        for i in order:
            probability *= float(p[i]) / left
            left -= float(p[i])
        total[list(order)] += probability
    return total


@pytest.mark.parametrize("k", [1, 2, 3])
def test_inclusion_is_that_of_multinomial_without_replacement(k: int) -> None:
    n = 40_000
    generator = torch.Generator().manual_seed(0)
    drawn = sample_without_replacement(LOGITS.expand(n, 5), k, generator=generator)
    assert all(len(set(row)) == k for row in drawn[:200].tolist())
    ours = torch.bincount(drawn.flatten(), minlength=5) / n
    multinomial = torch.multinomial(LOGITS.softmax(-1).expand(n, 5), k, replacement=False, generator=generator)
    theirs = torch.bincount(multinomial.flatten(), minlength=5) / n
    torch.testing.assert_close(ours, inclusion_by_enumeration(k), atol=0.01, rtol=0)
    torch.testing.assert_close(theirs, ours, atol=0.012, rtol=0)


def test_every_expert_is_drawn_and_none_by_position() -> None:
    """top-k of a hard one-hot sample, as elsewhere, always takes the same experts for its second and third choice."""
    drawn = sample_without_replacement(torch.zeros(20_000, 8), 3, generator=torch.Generator().manual_seed(0))
    for choice in range(3):
        share = torch.bincount(drawn[:, choice], minlength=8) / 20_000
        torch.testing.assert_close(share, torch.full((8,), 1 / 8), atol=0.01, rtol=0)


def test_same_generator_same_draws_and_bad_k() -> None:
    draws = [sample_without_replacement(LOGITS, 2, generator=torch.Generator().manual_seed(5)) for _ in range(2)]
    assert torch.equal(*draws)
    with pytest.raises(ValueError, match="k is 6; expected 1 to 5"):
        sample_without_replacement(LOGITS, 6)


def test_plackett_luce_density_sums_to_one_and_matches_draws() -> None:
    orders = torch.tensor(list(itertools.permutations(range(5), 3)))
    density = PlackettLuce(LOGITS, 3).log_prob(orders).exp()
    assert float(density.sum()) == pytest.approx(1.0, abs=1e-5)
    torch.manual_seed(0)
    drawn = PlackettLuce(LOGITS, 3).sample((60_000,))
    code = drawn @ torch.tensor([25, 5, 1])
    counts = torch.bincount(code, minlength=125)[orders @ torch.tensor([25, 5, 1])] / 60_000
    torch.testing.assert_close(counts, density, atol=0.006, rtol=0)
    kl = torch.distributions.kl_divergence(PlackettLuce(LOGITS, 2), PlackettLuce(LOGITS.clone(), 2))
    assert float(kl) == 0


def test_straight_through_factor_is_one_with_the_gradient_of_the_probability() -> None:
    logits = LOGITS.clone().requires_grad_()
    index = torch.tensor([3, 1])
    factor = straight_through_factor(logits, index)
    assert torch.equal(factor, torch.ones(2))
    (found,) = torch.autograd.grad(factor.sum(), [logits])
    (expected,) = torch.autograd.grad(logits.softmax(-1)[index].sum(), [logits])
    assert torch.equal(found, expected)


@pytest.mark.parametrize(
    ("family", "score", "normalised"),
    [
        ("mixtral", "softmax", True),
        ("jamba", "softmax", False),
        ("granitemoe", "softmax", True),
        ("deepseek_v3", "sigmoid", True),
        ("flint", "sigmoid", True),
        ("lfm2_moe", "sigmoid", True),
    ],
)
@torch.no_grad()
def test_weighting_is_found_from_the_rule(family: str, score: str, normalised: bool) -> None:
    """And weighs drawn experts as the formula says: against scores computed here."""
    options = {"norm_topk_prob": True} if family in ("deepseek_v3", "lfm2_moe", "flint") else {}
    model = tiny(family, **options)
    attachment = attach(model)
    found: list[Weighting] = []
    recorded: list[torch.Tensor] = []
    index = torch.tensor([5, 2])

    def function(call: RouterCall) -> Chosen:
        found.append(call.weighting())
        return Chosen(call.logits, index.expand(*call.logits.shape[:-1], 2))

    def check(module: torch.nn.Module, args: tuple, output: tuple) -> None:
        scores = output[0].float()[:, index]
        scores = output[0].float().softmax(-1)[:, index] if score == "softmax" else scores.sigmoid()
        weights = scores / scores.sum(-1, keepdim=True) if normalised else scores
        recorded.append(output[1] / weights)
        assert torch.equal(output[2], index.expand_as(output[2]))

    for router in attachment.routers:
        model.get_submodule(router.name).register_forward_hook(check)
    with attachment.routing(function):
        run(model)
    assert {(w.score, w.normalised) for w in found} == {(score, normalised)}
    ratio = torch.cat(recorded)
    torch.testing.assert_close(ratio, torch.full_like(ratio, found[0].scale), rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_an_unknown_weighting_is_refused() -> None:
    model = tiny("phimoe")
    with (
        attach(model).routing(lambda call: Chosen(call.logits, call.logits.topk(2, -1).indices)),
        pytest.raises(NotImplementedError, match="weighs experts by a rule that is not known"),
    ):
        run(model)
