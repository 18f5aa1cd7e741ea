"""Masks and budgets by counting, enforcement on toy objectives, orthogonality by simulation."""

from __future__ import annotations

import inspect
import math
from fractions import Fraction
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torchvision.models import VisionTransformer

from pyro_smat.networks.experts import ExpertBank
from pyro_smat.networks.gates import Granularity, hard_concrete, open_probability
from pyro_smat.networks.parameters import ParameterSpace

GRANULARITIES: tuple[Granularity, ...] = ("coordinate", "channel", "head", "block", "tensor")


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Scaled(nn.Module):
    """d = 111: groups of several sizes, a scalar, and running statistics (8 coordinates)."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.0))
        self.convolution = nn.Conv2d(1, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.linear = nn.Linear(5, 9)

    def forward(self, x: Tensor) -> Tensor:
        return x


def network_space() -> ParameterSpace:
    space = ParameterSpace.from_module(Scaled())
    assert space.dim == 1 + 40 + 16 + 54
    return space


def tiny_vit() -> nn.Module:
    torch.manual_seed(0)
    return VisionTransformer(8, patch_size=4, num_layers=2, num_heads=2, hidden_dim=8, mlp_dim=12, num_classes=3)


def vector_bank(dim: int, experts: int, sparsity: float, **options: Any) -> ExpertBank:
    """One gate for each of ``dim`` coordinates of a plain vector."""
    return ExpertBank(ParameterSpace.from_module(nn.Linear(dim, 1, bias=False)), experts, sparsity=sparsity, **options)


def expected_open(bank: ExpertBank) -> Tensor:
    return open_probability(bank.log_alpha.detach().double()) @ bank.group_size.double()


# ---- sampled and deployed rows ----


def test_gates_of_a_bank_are_stochastic_with_the_right_variance() -> None:
    bank = ExpertBank(network_space(), 3, init=0.0, delta_scale=1.0, generator=seeded())
    with torch.no_grad():
        bank.delta.fill_(1.0)
        samples = bank.rows(1000, seeded(0))
    trainable = network_space().trainable()
    assert samples.shape == (1000, 3, 111)
    assert not torch.equal(samples[0], samples[1])
    assert torch.equal(bank.rows(generator=seeded(0)), bank.rows(generator=seeded(0)))
    assert not torch.equal(bank.rows(), bank.rows())
    bank.eval()
    assert torch.equal(bank.rows(1000, seeded(0)), samples)  # one formula for training and evaluation
    grid = (torch.arange(2001, dtype=torch.float64) + 0.5) / 2001
    for expert in (0, 2):
        exact = hard_concrete(bank.log_alpha[expert].double().unsqueeze(-1), grid)
        drawn = samples[:, expert, trainable]
        torch.testing.assert_close(drawn.mean(0), exact.mean(-1).float(), atol=0.07, rtol=0)
        torch.testing.assert_close(drawn.var(0), exact.var(-1).float(), atol=0.04, rtol=0)
    assert not samples[..., ~trainable].any()
    correlation = torch.corrcoef(samples[:, :, 0].T)  # experts have noise of their own
    assert correlation[0, 1].abs() < 0.15
    draws = torch.corrcoef(samples[:2].reshape(2, -1)[:, trainable.repeat(3)] - exact.mean())  # and so have draws
    assert draws[0, 1].abs() < 0.2


def test_draws_share_their_gates_inside_a_group() -> None:
    bank = ExpertBank(network_space(), 2, sparsity=0.5, granularity="tensor", delta_scale=1.0, generator=seeded())
    gates = bank.rows(5, seeded(1)) / bank.delta
    for entry in network_space().entries:
        tensor = gates[..., entry.offset : entry.offset + entry.numel]
        torch.testing.assert_close(tensor, tensor[..., :1].expand_as(tensor))


@pytest.mark.parametrize("granularity", GRANULARITIES)
@settings(deadline=None, max_examples=25, derandomize=True)
@given(
    sparsity=st.sampled_from([0.0, 0.3, 0.5, 0.9, 0.99, 0.999]),
    init=st.floats(-4, 2),
    spread=st.sampled_from([0.0, 1.0, 6.0]),
    gates=st.sampled_from(["hard_concrete", "top_k"]),
    transformer=st.booleans(),
)
def test_budgets_are_met_exactly(
    granularity: Granularity, sparsity: float, init: float, spread: float, gates: Any, transformer: bool
) -> None:
    module = tiny_vit() if transformer or granularity == "head" else Scaled()
    space = ParameterSpace.from_module(module)
    options: dict[str, Any] = {"init": init, "delta_scale": 1.0, "generator": seeded()}
    bank = ExpertBank(space, 3, sparsity=sparsity, granularity=granularity, module=module, gates=gates, **options)
    with torch.no_grad():
        bank.log_alpha.add_(spread * torch.randn(bank.log_alpha.shape, generator=seeded(1)))
    budget = math.floor((1 - Fraction(str(sparsity))) * space.dim)
    masks = bank.masks()
    assert masks.shape == (3, space.dim)
    assert masks.dtype == torch.bool
    assert not masks[:, ~space.trainable()].any()
    assert masks.sum(-1).max() <= budget
    assert torch.equal(bank.projected_rows(), masks * bank.delta)
    share = masks.double().new_zeros(3, len(bank.group_size) + 1).index_add(1, bank.group, masks.double())[:, :-1]
    opened = share / bank.group_size
    assert ((opened == 0) | (opened == 1)).all()  # groups open as a whole
    if gates == "top_k":
        assert torch.equal(bank.rows(), bank.projected_rows())  # trained as deployed
        assert not (opened.bool() & (bank.log_alpha < 0)).any()
        torch.testing.assert_close(bank.sparsities().detach(), 1 - masks.float().mean(-1))
    bank.after_step()
    if gates == "hard_concrete":
        limit = (1 - sparsity) * space.dim
        assert (expected_open(bank) <= limit * (1 + 1e-6)).all()
        assert (bank.sparsities() >= sparsity - 1e-6).all()


def test_deployed_experts_open_what_training_opened_in_expectation_and_no_more_than_the_budget() -> None:
    bank = vector_bank(1000, 3, sparsity=0.8)
    with torch.no_grad():
        bank.log_alpha[0] = torch.linspace(-8, 12, 1000)  # many gates want to open: the budget cuts
        bank.log_alpha[1] = torch.where(torch.arange(1000) % 20 == 0, 6.0, -12.0)  # training closed all but 50
        bank.log_alpha[2] = -3.8 + 0.1 * torch.randn(1000, generator=seeded())  # undecided, 10% of them open at a time
    masks = bank.masks()
    assert masks.sum(-1).tolist() == [200, 50, round(float(expected_open(bank)[2]))]
    assert 90 < int(masks[2].sum()) < 110
    for mask, scores in zip(masks, bank.log_alpha, strict=True):
        assert scores[mask].min() >= scores[~mask].max()  # the largest ones
    assert torch.equal(masks[1], torch.arange(1000) % 20 == 0)


def test_ties_go_to_the_lower_index_and_the_best_group_that_fits_first() -> None:
    space = ParameterSpace.from_module(nn.Linear(4, 4))
    bank = ExpertBank(space, 1, sparsity=0.5)
    with torch.no_grad():
        bank.log_alpha.zero_()
    assert bank.masks()[0].nonzero().flatten().tolist() == list(range(10))
    tensors = ExpertBank(space, 1, sparsity=0.5, granularity="tensor")
    with torch.no_grad():
        tensors.log_alpha.copy_(torch.tensor([[5.0, 0.5]]))  # the weight (16) is preferred but does not fit into 10
    assert tensors.masks()[0].nonzero().flatten().tolist() == [16, 17, 18, 19]


def test_budget_is_the_exact_floor_for_every_decimal_sparsity_and_size() -> None:
    bank = ExpertBank(ParameterSpace.from_module(nn.Linear(2, 2)), 0)
    for thousandths in range(1000):
        bank.sparsity = thousandths / 1000
        for dim in (1, 10, 999, 1000, 123_456_789, 10**8, 7 * 10**9):
            bank.dim = dim
            assert bank.budget == (1000 - thousandths) * dim // 1000


def test_sparsities_are_the_expected_closed_share() -> None:
    bank = ExpertBank(network_space(), 2, sparsity=0.5, granularity="channel", init=-0.5, generator=seeded())
    with torch.no_grad():
        bank.delta.fill_(1.0)
        opened = (bank.rows(2000, seeded()) > 0).float().mean((0, -1))
    torch.testing.assert_close(bank.sparsities().detach(), 1 - opened, atol=0.015, rtol=0)


def test_top_k_rows_change_when_a_closed_gate_overtakes_an_open_one() -> None:
    """The straight-through gradient reaches closed gates, so training can change which are open."""
    bank = vector_bank(10, 1, 0.9, gates="top_k", delta_scale=1.0, generator=seeded())
    first = int(bank.masks()[0].nonzero())
    wanted = (first + 3) % 10
    optimiser = torch.optim.SGD([bank.log_alpha], lr=5.0)
    for _ in range(20):
        optimiser.zero_grad()
        rows = bank.rows(4)
        assert torch.equal(rows, rows[:1].expand(4, -1, -1))
        assert (rows != 0).sum() == 4
        (rows[..., wanted] / bank.delta[wanted] - 1).square().mean().backward()
        optimiser.step()
        bank.after_step()
    assert bank.masks()[0].nonzero().flatten().tolist() == [wanted]


# ---- enforcement ----


def train(
    bank: ExpertBank,
    steps: int,
    worth: Tensor | None = None,
    *,
    scale: float = 1e-3,
    rate: float = 0.05,
    used: slice = slice(None),
) -> list[Tensor]:
    """Adam on a loss of small curvature that wants every gate open: sparsities after each step."""
    worth = torch.linspace(0.1, 1.0, bank.log_alpha.shape[1]) if worth is None else worth
    optimiser = torch.optim.Adam([bank.log_alpha], lr=rate, betas=(0.9, 0.99))
    trace = []
    generator = seeded(1)
    for _ in range(steps):
        optimiser.zero_grad()
        gates = hard_concrete(bank.log_alpha, torch.rand(bank.log_alpha.shape, generator=generator))
        (scale * (worth * (1 - gates[used]).square()).mean(-1).sum()).backward()
        bank.after_backward()
        optimiser.step()
        bank.after_step()
        trace.append(bank.sparsities().detach())
    return trace


@pytest.mark.parametrize(
    ("dim", "experts", "scale"),
    [(100, 3, 1e-3), (100, 3, 1e3), (100, 3, 1e-5), (10_000, 2, 1e-3), (1_000_000, 1, 1e-3)],
)
def test_primal_dual_reaches_the_budget_whatever_the_size_of_network_and_loss(
    dim: int, experts: int, scale: float
) -> None:
    bank = vector_bank(dim, experts, 0.9, budget="primal_dual", generator=seeded())
    assert (bank.sparsities() < 0.2).all()
    trace = torch.stack(train(bank, 110 if dim > 10_000 else 500, scale=scale, rate=0.1))
    assert ((trace[80:] - 0.9).abs() < 0.02).all()
    assert (bank.multipliers > 0).all()
    masks = bank.masks()
    assert (masks.sum(-1) <= bank.budget).all()
    assert (masks.sum(-1) > 0.7 * bank.budget).all()
    positions = torch.arange(dim).float()
    assert ((masks * positions).sum(-1) / masks.sum(-1) > positions.mean()).all()  # it keeps the ones of more worth


@pytest.mark.parametrize("granularity", ["channel", "tensor"])
def test_primal_dual_with_groups_of_different_sizes(granularity: Granularity) -> None:
    bank = ExpertBank(
        network_space(), 2, sparsity=0.6, granularity=granularity, budget="primal_dual", generator=seeded()
    )
    worth = bank.group_size / bank.group_size.sum()
    trace = torch.stack(train(bank, 600, worth))
    assert (trace[-20:] > 0.55).all()


def test_primal_dual_of_an_expert_that_no_episode_uses() -> None:
    bank = vector_bank(200, 3, 0.9, budget="primal_dual", generator=seeded())
    trace = torch.stack(train(bank, 300, used=slice(0, 2)))
    assert bank.log_alpha.grad is not None
    assert (trace[-1] > 0.85).all()


def test_primal_dual_gradient_by_hand_and_only_the_violated_expert_pays() -> None:
    bank = ExpertBank(
        network_space(), 2, sparsity=0.5, granularity="channel", budget="primal_dual", generator=seeded()
    ).double()
    with torch.no_grad():
        bank.log_alpha[1] = -6.0
        bank.multipliers.copy_(torch.tensor([0.3, 0.2]))
    loss_gradient = torch.randn(bank.log_alpha.shape, generator=seeded(), dtype=torch.float64)
    gates = bank.log_alpha.shape[1]
    bank.log_alpha.grad = loss_gradient / math.sqrt(gates)
    bank.after_backward()
    added = bank.log_alpha.grad - loss_gradient
    # Finite differences of the expected number of open coordinates of the first expert.
    step, slopes = 1e-6, []
    for gate in range(gates):
        counts = []
        for sign in (1, -1):
            with torch.no_grad():
                bank.log_alpha[0, gate] += sign * step
                counts.append(float(expected_open(bank)[0]))
                bank.log_alpha[0, gate] -= sign * step
        slopes.append((counts[0] - counts[1]) / (2 * step))
    slope = torch.tensor(slopes, dtype=torch.float64)
    violation = math.log(float(expected_open(bank)[0]) / (0.5 * 111))
    rms = [float(x.square().mean().sqrt()) for x in (loss_gradient[0], slope)]
    torch.testing.assert_close(added[0], (0.3 + 4 * violation) * rms[0] / rms[1] * slope, rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(added[1], torch.zeros_like(added[1]))
    bank.after_step()
    assert bank.multipliers.tolist() == pytest.approx([0.3 + 0.05 * 0.1, 0.2 - 0.05 * 0.1])
    assert not bank.multipliers.requires_grad


def test_multipliers_neither_wind_up_nor_hold_on() -> None:
    bank = vector_bank(50, 1, 0.9, budget="primal_dual", dual_learning_rate=1.0)
    with torch.no_grad():
        bank.log_alpha.fill_(5.0)
    for _ in range(500):
        bank.after_step()
    assert bank.multipliers.item() == 10.0
    with torch.no_grad():
        bank.log_alpha.fill_(-9.0)
    bank.log_alpha.grad = torch.ones_like(bank.log_alpha)
    bank.after_backward()
    assert bank.log_alpha.grad.max() < 1.01 * math.sqrt(50)  # far within the budget the pressure is gone at once
    for _ in range(100):
        bank.after_step()
    assert bank.multipliers.item() == 0.0


def test_projection_is_exact_after_every_step_and_leaves_slack_alone() -> None:
    bank = vector_bank(2000, 2, 0.9, generator=seeded())
    for sparsities in train(bank, 150, rate=0.1):
        torch.testing.assert_close(sparsities, torch.full((2,), 0.9), atol=2e-6, rtol=0)
    assert (expected_open(bank) <= 0.1 * 2000 * (1 + 1e-6)).all()
    assert not bank.multipliers.any()
    masks = bank.masks()
    assert (masks.sum(-1) == bank.budget).all()
    # The objective's order is kept: one constant for all gates of an expert.
    before = bank.log_alpha.detach().clone()
    with torch.no_grad():
        bank.log_alpha.add_(torch.tensor([[0.5], [-0.5]]))
    raised = bank.log_alpha.detach().clone()
    bank.after_step()
    assert torch.equal(bank.log_alpha[1], raised[1])
    torch.testing.assert_close(bank.log_alpha[0], before[0], atol=1e-4, rtol=0)
    gradient = torch.randn(bank.log_alpha.shape)
    bank.log_alpha.grad = gradient.clone()
    bank.after_backward()
    torch.testing.assert_close(bank.log_alpha.grad, gradient * math.sqrt(2000))


@pytest.mark.parametrize(("gates", "budget"), [("hard_concrete", "projection"), ("top_k", "projection")])
def test_the_ramp_is_cubic_and_the_budget_follows_it(gates: Any, budget: Any) -> None:
    bank = vector_bank(1000, 2, 0.8, gates=gates, budget=budget, ramp=0.4, init=3.0, generator=seeded())
    assert bank.current_sparsity == 0.8  # until someone says that training is young
    for progress in (0.0, 0.1, 0.2, 0.3, 0.4, 0.7, 1.0):
        bank.set_progress(progress)
        tau = 0.8 * (1 - max(0, 1 - progress / 0.4) ** 3)
        assert bank.current_sparsity == pytest.approx(tau, abs=1e-6)
        bank.after_step()
        assert (bank.sparsities() >= tau - 1e-6).all()
        assert (bank.sparsities() <= max(tau, 0.02) + 2e-3).all()  # no more is closed than tau says
        assert (bank.masks().sum(-1) <= 200).all()  # what is deployed meets the whole tau at all times
    assert vector_bank(10, 1, 0.8, ramp=0.0).current_sparsity == 0.8
    for fraction in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match="progress is"):
            bank.set_progress(fraction)


def test_primal_dual_follows_the_ramp() -> None:
    bank = vector_bank(500, 2, 0.9, budget="primal_dual", generator=seeded())
    bank.set_progress(0.0)
    early = train(bank, 100)[-1]
    assert (early < 0.3).all()
    assert not bank.multipliers.any()
    bank.set_progress(1.0)
    assert (train(bank, 300)[-1] > 0.85).all()


# ---- orthogonality ----


def test_orthogonality_against_sampled_rows() -> None:
    bank = ExpertBank(network_space(), 3, sparsity=0.5, granularity="channel", delta_scale=1.0, generator=seeded())
    with torch.no_grad():
        bank.log_alpha.copy_(2 * torch.randn(bank.log_alpha.shape, generator=seeded(3)))
        mean = bank.rows(20_000, seeded(4)).mean(0)
    cosines = [torch.cosine_similarity(mean[m], mean[n], dim=0).item() ** 2 for m, n in ((0, 1), (0, 2), (1, 2))]
    assert bank.orthogonality().item() == pytest.approx(sum(cosines) / 3, abs=0.01)


def test_orthogonality_of_disjoint_and_equal_experts_is_0_and_1() -> None:
    bank = vector_bank(40, 2, 0.5, delta_scale=1e-16, generator=seeded())  # does not depend on the scale of delta
    half = torch.arange(40) < 20
    with torch.no_grad():
        bank.log_alpha.copy_(torch.where(torch.stack([half, ~half]), 20.0, -40.0))
    assert bank.orthogonality().item() == pytest.approx(0, abs=1e-6)
    with torch.no_grad():
        bank.log_alpha.copy_(bank.log_alpha[:1].expand(2, -1))
    assert bank.orthogonality().item() == pytest.approx(1, abs=1e-5)
    closed = vector_bank(40, 2, 0.5, init=-30.0, delta_scale=1.0)
    assert 0 <= closed.orthogonality().item() <= 1 + 1e-6
    at_the_sources = vector_bank(40, 2, 0.5)  # delta is zero
    at_the_sources.orthogonality().backward()
    assert at_the_sources.orthogonality().item() == 0
    assert at_the_sources.log_alpha.grad is not None
    assert torch.isfinite(at_the_sources.log_alpha.grad).all()
    for experts in (0, 1):
        assert vector_bank(40, experts, 0.5, delta_scale=1.0).orthogonality().item() == 0


@pytest.mark.parametrize("gates", ["hard_concrete", "top_k"])
def test_descending_on_orthogonality_parts_the_experts(gates: Any) -> None:
    bank = vector_bank(60, 3, 0.7, gates=gates, delta_scale=1.0, generator=seeded())
    before = bank.orthogonality().item()
    optimiser = torch.optim.Adam([bank.log_alpha], lr=0.1)
    for _ in range(100):
        optimiser.zero_grad()
        bank.orthogonality().backward()
        optimiser.step()
        bank.after_step()
    assert bank.orthogonality().item() < 0.2 * before


def test_gradient_of_orthogonality_against_finite_differences() -> None:
    bank = ExpertBank(
        network_space(), 3, sparsity=0.5, granularity="channel", delta_scale=0.1, generator=seeded()
    ).double()
    gates, delta = bank.log_alpha.detach(), bank.delta.detach()

    def value(log_alpha: Tensor, delta: Tensor) -> Tensor:
        return torch.func.functional_call(bank, {"log_alpha": log_alpha, "delta": delta}, ())

    bank.forward = bank.orthogonality  # type: ignore[assignment]
    assert torch.autograd.gradcheck(value, (gates.requires_grad_(), delta.requires_grad_()))


# ---- the object ----


def test_gradient_reaches_delta_and_gates_but_not_the_running_statistics() -> None:
    bank = ExpertBank(network_space(), 1, delta_scale=1.0, generator=seeded())
    bank.rows(generator=seeded(1)).square().sum().backward()
    assert bank.delta.grad is not None
    assert bank.log_alpha.grad is not None
    assert bank.delta.grad[network_space().trainable()].any()
    assert not bank.delta.grad[~network_space().trainable()].any()
    assert bank.log_alpha.grad.any()


def test_delta_starts_at_the_sources_and_experts_start_apart() -> None:
    bank = ExpertBank(network_space(), 3, generator=seeded())
    assert not bank.delta.any()
    assert not torch.equal(bank.log_alpha[0], bank.log_alpha[1])
    again = ExpertBank(network_space(), 3, generator=seeded())
    assert torch.equal(bank.log_alpha, again.log_alpha)


@pytest.mark.parametrize("budget", ["projection", "primal_dual"])
def test_no_experts(budget: Any) -> None:
    space = network_space()
    bank = ExpertBank(space, 0, budget=budget)
    assert len(bank) == 0
    assert bank.rows().shape == bank.masks().shape == bank.projected_rows().shape == (0, space.dim)
    assert bank.rows(5).shape == (5, 0, space.dim)
    assert bank.sparsities().shape == (0,)
    bank.log_alpha.grad = torch.zeros_like(bank.log_alpha)
    bank.after_backward()
    bank.after_step()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_experts": -1}, "num_experts is -1"),
        *(({"sparsity": tau}, "sparsity") for tau in (1.0, -0.1, 1.5, math.nan)),
        *(({"ramp": ramp}, "ramp is") for ramp in (-0.1, 1.1, math.nan)),
        ({"granularity": "layer"}, "granularity is 'layer'"),
        ({"granularity": "head"}, "pass module="),
        ({"gates": "soft"}, r"gates is 'soft'; expected one of \('hard_concrete', 'top_k'\)"),
        ({"budget": "none"}, r"budget is 'none'; expected one of \('primal_dual', 'projection'\)"),
        ({"gates": "top_k", "budget": "primal_dual"}, "expected budget='projection'"),
    ],
)
def test_refused_banks(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ExpertBank(network_space(), **{"num_experts": 1, **options})
    assert not any(
        p.kind is inspect.Parameter.VAR_KEYWORD for p in inspect.signature(ExpertBank.__init__).parameters.values()
    )


def test_a_saved_bank_restores_gates_delta_multipliers_and_progress() -> None:
    options: dict[str, Any] = {"budget": "primal_dual"}
    bank = ExpertBank(network_space(), 2, delta_scale=1.0, generator=seeded(), **options)
    bank.set_progress(0.25)
    bank.after_step()
    other = ExpertBank(network_space(), 2, generator=seeded(9), **options)
    other.load_state_dict(bank.state_dict())
    assert bank.state_dict().keys() == {"delta", "log_alpha", "multipliers", "progress"}
    assert torch.equal(other.multipliers, bank.multipliers)
    assert bank.multipliers.any()
    assert other.current_sparsity == bank.current_sparsity != 0.9
    assert torch.equal(other.projected_rows(), bank.projected_rows())
