"""Hard-concrete gates by simulation, budgets by counting, the primal-dual loop on a toy objective."""

from __future__ import annotations

import inspect
import math
from fractions import Fraction

import pytest
import torch
from torch import Tensor, nn

from pyro_smat.experts import STRETCH_HIGH, STRETCH_LOW, TEMPERATURE, ExpertBank, hard_concrete, open_probability
from pyro_smat.parameters import ParameterSpace

DRAWS = 200_000


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def network_space() -> ParameterSpace:
    """d = 110: groups of several sizes, a scalar, and running statistics (8 coordinates)."""

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(1.0))
            self.convolution = nn.Conv2d(1, 4, 3)
            self.norm = nn.BatchNorm2d(4)
            self.linear = nn.Linear(5, 9)

        def forward(self, x: Tensor) -> Tensor:
            return x

    space = ParameterSpace.from_module(Scaled())
    assert space.dim == 1 + 40 + 16 + 54
    return space


def uniform(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=seeded(seed), dtype=torch.float64)


def logit_at(z: float) -> float:
    """The logistic value at which the stretched gate equals z: beta logit((z - gamma) / (zeta - gamma))."""
    share = (z - STRETCH_LOW) / (STRETCH_HIGH - STRETCH_LOW)
    return TEMPERATURE * math.log(share / (1 - share))


@pytest.mark.parametrize("log_alpha", [-3.0, -0.7, 0.0, 0.5, 2.5])
def test_distribution_of_the_gate_against_its_closed_form(log_alpha: float) -> None:
    gates = hard_concrete(torch.full((DRAWS,), log_alpha, dtype=torch.float64), uniform((DRAWS,)))
    tolerance = 4 * 0.5 / math.sqrt(DRAWS)

    def cdf(z: float) -> float:  # P(gate <= z) for 0 <= z < 1
        return 1 / (1 + math.exp(log_alpha - logit_at(z)))

    assert (gates > 0).double().mean().item() == pytest.approx(
        open_probability(torch.tensor(log_alpha)).item(), abs=tolerance
    )
    assert (gates == 0).double().mean().item() == pytest.approx(cdf(0.0), abs=tolerance)
    assert (gates == 1).double().mean().item() == pytest.approx(1 - cdf(1.0), abs=tolerance)
    for z in (0.1, 0.3, 0.5, 0.9):
        assert (gates <= z).double().mean().item() == pytest.approx(cdf(z), abs=tolerance)
    grid = (torch.arange(20_001, dtype=torch.float64) + 0.5) / 20_001  # mean and variance by quadrature over u
    exact = hard_concrete(torch.full_like(grid, log_alpha), grid)
    assert gates.mean().item() == pytest.approx(exact.mean().item(), abs=tolerance)
    assert gates.var().item() == pytest.approx(exact.var().item(), abs=tolerance)
    assert exact.var() > 0.01  # truly stochastic


def test_constants_are_those_of_the_paper_and_the_gate_is_computed_by_hand() -> None:
    assert (pytest.approx(2 / 3), -0.1, 1.1) == (TEMPERATURE, STRETCH_LOW, STRETCH_HIGH)
    u, a = 0.3, 0.4
    s = 1 / (1 + math.exp(-(math.log(u / (1 - u)) + a) / (2 / 3)))
    gate = hard_concrete(torch.tensor([a], dtype=torch.float64), torch.tensor([u], dtype=torch.float64))
    assert gate.item() == pytest.approx(1.2 * s - 0.1, abs=1e-12)


def test_one_formula_for_training_and_evaluation() -> None:
    """The noiseless gate is the median of the noisy one: no change of temperature, no shifted threshold."""
    log_alpha = torch.linspace(-3, 3, 25, dtype=torch.float64)
    median = hard_concrete(log_alpha.expand(40_001, -1), uniform((40_001, 25))).median(0).values
    torch.testing.assert_close(hard_concrete(log_alpha), median, atol=0.02, rtol=0)
    threshold = TEMPERATURE * math.log(-STRETCH_LOW / STRETCH_HIGH)  # -1.5986: P(open) = 1/2 and the median closes
    around = torch.tensor([threshold - 1e-3, threshold + 1e-3], dtype=torch.float64)
    assert hard_concrete(around)[0] == 0
    assert hard_concrete(around)[1] > 0
    assert open_probability(torch.tensor(threshold, dtype=torch.float64)).item() == pytest.approx(0.5)
    bank = ExpertBank(network_space(), 2, delta_scale=1.0, generator=seeded())
    first = bank.rows(seeded(5))
    bank.eval()
    assert torch.equal(bank.rows(seeded(5)), first)


def test_extreme_noise_stays_finite() -> None:
    noise = torch.tensor([0.0, 1.0, 0.5])
    log_alpha = torch.zeros(3, requires_grad=True)
    gates = hard_concrete(log_alpha, noise)
    gates.sum().backward()
    assert gates.tolist() == [0.0, 1.0, pytest.approx(0.5)]
    assert log_alpha.grad is not None
    assert torch.isfinite(log_alpha.grad).all()


def test_gates_of_a_bank_are_stochastic_with_the_right_variance() -> None:
    bank = ExpertBank(network_space(), 3, init=0.0, delta_scale=1.0, generator=seeded())
    with torch.no_grad():
        bank.delta.fill_(1.0)
        samples = torch.stack([bank.rows(seeded(s)) for s in range(1000)])
    trainable = network_space().trainable()
    assert not torch.equal(samples[0], samples[1])
    assert torch.equal(samples[0], bank.rows(seeded(0)).detach())
    assert not torch.equal(bank.rows(), bank.rows())
    grid = (torch.arange(2001, dtype=torch.float64) + 0.5) / 2001
    for expert in (0, 2):
        log_alpha = bank.log_alpha[expert].double()
        exact = hard_concrete(log_alpha.unsqueeze(-1).expand(-1, len(grid)), grid.expand(len(log_alpha), -1))
        mean, variance = exact.mean(-1).float(), exact.var(-1).float()
        drawn = samples[:, expert, trainable]
        torch.testing.assert_close(drawn.mean(0), mean, atol=0.07, rtol=0)
        torch.testing.assert_close(drawn.var(0), variance, atol=0.04, rtol=0)
    assert not samples[..., ~trainable].any()
    correlation = torch.corrcoef(samples[:, :, 0].T)  # experts have noise of their own
    assert correlation[0, 1].abs() < 0.15


def sizes_by_hand(space: ParameterSpace, granularity: str) -> list[tuple[list[int], bool]]:
    """Coordinates of every gate, in the order of the gates."""
    groups: list[list[int]] = []
    for entry in space.entries:
        if not entry.trainable:
            continue
        indices = list(range(entry.offset, entry.offset + entry.numel))
        if granularity == "tensor":
            groups.append(indices)
        elif granularity == "coordinate" or not entry.shape:
            groups += [[i] for i in indices]
        else:
            width = entry.numel // entry.shape[0]
            groups += [indices[i : i + width] for i in range(0, entry.numel, width)]
    return [(g, True) for g in groups]


@pytest.mark.parametrize("granularity", ["coordinate", "channel", "tensor"])
@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.5, 0.9, 0.99, 0.999])
@pytest.mark.parametrize("init", [1.0, 0.0])  # all gates wish to open, or about half of them
def test_budgets_are_met_exactly(granularity: str, sparsity: float, init: float) -> None:
    space = network_space()
    bank = ExpertBank(space, 4, sparsity, granularity, init=init, delta_scale=1.0, generator=seeded())  # type: ignore[arg-type]
    budget = math.floor((1 - Fraction(str(sparsity))) * space.dim)
    groups = [g for g, _ in sizes_by_hand(space, granularity)]
    assert bank.log_alpha.shape == (4, len(groups))
    masks = bank.masks()
    assert masks.shape == (4, space.dim)
    assert masks.dtype == torch.bool
    for expert, mask in enumerate(masks):
        opened = int(mask.sum())
        assert opened <= budget
        assert not mask[~space.trainable()].any()
        states = [mask[g] for g in groups]
        wishes = (bank.log_alpha[expert] >= 0).tolist()  # gates whose median is at least 1/2
        willing = sum(len(g) for g, wish in zip(groups, wishes, strict=True) if wish)
        assert willing == int(space.trainable().sum()) or init == 0.0
        assert all(s.all() or not s.any() for s in states)  # groups open as a whole
        if granularity == "coordinate":
            assert opened == min(budget, willing)
            if 0 < opened < len(groups):
                scores = bank.log_alpha[expert]
                is_open = torch.tensor([bool(s.all()) for s in states])
                assert scores[is_open].min() >= scores[~is_open].max()
        for group, state, wish in zip(groups, states, wishes, strict=True):
            assert wish or not state.any()
            if wish and not state.any():
                assert opened + len(group) > budget  # no further group fits
    rows = bank.projected_rows()
    assert torch.equal(rows, masks * bank.delta)
    assert ((rows != 0).sum(-1) <= budget).all()


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
    space = network_space()
    bank = ExpertBank(space, 2, 0.5, "channel", init=-0.5, generator=seeded())
    with torch.no_grad():
        bank.delta.fill_(1.0)
        opened = torch.stack([(bank.rows(seeded(s)) > 0).float().mean(-1) for s in range(600)]).mean(0)
    torch.testing.assert_close(bank.sparsities().detach(), 1 - opened, atol=0.025, rtol=0)


def test_gradient_of_the_penalty_against_finite_differences() -> None:
    bank = ExpertBank(network_space(), 2, 0.9, "tensor", generator=seeded()).double()
    bank.multipliers.copy_(torch.tensor([0.7, 2.0]))
    (gradient,) = torch.autograd.grad(bank.penalty(), bank.log_alpha)
    for m, g in ((0, 0), (0, 3), (1, 1), (1, 6)):
        values = []
        for step in (1e-6, -1e-6):
            with torch.no_grad():
                bank.log_alpha[m, g] += step
                closed = (
                    1
                    - sum(
                        len(group) / (1 + math.exp(-(float(a) - TEMPERATURE * math.log(0.1 / 1.1))))
                        for (group, _), a in zip(
                            sizes_by_hand(network_space(), "tensor"), bank.log_alpha[m], strict=True
                        )
                    )
                    / network_space().dim
                )
                values.append(float(bank.multipliers[m]) * (0.9 - closed))
                bank.log_alpha[m, g] -= step
        assert gradient[m, g].item() == pytest.approx((values[0] - values[1]) / 2e-6, rel=1e-5, abs=1e-8)
    assert (gradient > 0).all()  # closing gates lowers the penalty


def primal_dual(bank: ExpertBank, target: float, steps: int) -> list[float]:
    """A convex toy objective pulls every gate towards ``target``, some harder; the trace of the first multiplier."""
    worth = torch.linspace(0.1, 2.0, bank.log_alpha.shape[1])
    optimiser = torch.optim.Adam([bank.log_alpha], lr=0.05)
    trace = []
    for _ in range(steps):
        optimiser.zero_grad()
        loss = (worth * (torch.sigmoid(bank.log_alpha) - target).square()).mean(-1).sum()
        (loss + bank.penalty()).backward()
        optimiser.step()
        bank.dual_step(0.02)
        trace.append(float(bank.multipliers[0]))
    return trace


def test_primal_dual_loop_reaches_the_budget_and_lets_go_of_a_slack_constraint() -> None:
    bank = ExpertBank(network_space(), 2, sparsity=0.8, init=1.0, generator=seeded())
    assert (bank.sparsities() < 0.2).all()
    trace = primal_dual(bank, target=1.0, steps=1000)
    assert trace[0] > 0  # violated: grows from the first step
    sparsities = bank.sparsities().detach()
    assert ((sparsities - 0.8).abs() < 0.03).all()
    assert (bank.multipliers > 0.05).all()
    primal_dual(bank, target=0.0, steps=1000)  # now the objective itself wants closed gates
    assert (bank.sparsities() > 0.9).all()
    assert bank.multipliers.tolist() == [0.0, 0.0]
    assert bank.penalty().item() == 0.0


def test_dual_step_by_hand_and_only_the_violated_expert_pays() -> None:
    bank = ExpertBank(network_space(), 2, sparsity=0.5)
    with torch.no_grad():
        bank.log_alpha[0] = 3.0
        bank.log_alpha[1] = -6.0
    s = bank.sparsities().detach()
    bank.dual_step(0.1)
    torch.testing.assert_close(bank.multipliers, torch.tensor([0.1 * (0.5 - float(s[0])), 0.0]))
    torch.testing.assert_close(bank.penalty(), bank.multipliers[0] * (0.5 - s[0]))
    assert not bank.multipliers.requires_grad


def test_gradient_reaches_delta_and_gates_but_not_through_the_closed_ones() -> None:
    bank = ExpertBank(network_space(), 1, delta_scale=1.0, generator=seeded())
    bank.rows(seeded(1)).square().sum().backward()
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


def test_no_experts() -> None:
    space = network_space()
    bank = ExpertBank(space, 0)
    assert len(bank) == 0
    assert bank.rows().shape == bank.masks().shape == bank.projected_rows().shape == (0, space.dim)
    assert bank.sparsities().shape == (0,)
    assert bank.penalty().item() == 0.0
    bank.dual_step(1.0)


def test_refused_banks_and_unknown_arguments() -> None:
    space = network_space()
    with pytest.raises(ValueError, match="experts is -1"):
        ExpertBank(space, -1)
    for sparsity in (1.0, -0.1, 1.5, math.nan):
        with pytest.raises(ValueError, match="sparsity"):
            ExpertBank(space, 1, sparsity)
    with pytest.raises(ValueError, match="granularity is 'block'"):
        ExpertBank(space, 1, granularity="block")  # type: ignore[arg-type]
    assert not any(
        p.kind is inspect.Parameter.VAR_KEYWORD for p in inspect.signature(ExpertBank.__init__).parameters.values()
    )


def test_a_saved_bank_restores_gates_delta_and_multipliers() -> None:
    bank = ExpertBank(network_space(), 2, delta_scale=1.0, generator=seeded())
    bank.dual_step(0.3)
    other = ExpertBank(network_space(), 2, generator=seeded(9))
    other.load_state_dict(bank.state_dict())
    assert bank.state_dict().keys() == {"delta", "log_alpha", "multipliers"}
    assert torch.equal(other.multipliers, bank.multipliers)
    assert bank.multipliers.any()
    assert torch.equal(other.projected_rows(), bank.projected_rows())
