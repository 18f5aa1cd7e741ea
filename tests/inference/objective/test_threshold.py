"""Thresholds of the tail: against population values of known distributions, risk.cvar and finite differences."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

from pyro_smat.inference import CVaR_ELBO
from pyro_smat.inference.objective.threshold import BatchThreshold, LearnedThreshold, QueueThreshold, Threshold
from pyro_smat.metrics.risk import cvar, cvar_weights, value_at_risk
from pyro_smat.routing.local_module import LocalModule

RHO = 0.1
VAR = math.log(1 / RHO)  # of an exponential loss with mean 1
CVAR = VAR + 1.0
EACH = pytest.mark.parametrize("make", [BatchThreshold, QueueThreshold, LearnedThreshold])


def exponential(count: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return -torch.rand(count, generator=generator, dtype=torch.float64).log()


def run(threshold: Threshold, losses: Tensor, batch: int, rho: float = RHO) -> tuple[list[float], list[float]]:
    """Tail losses and sums of tail weights, batch by batch."""
    tails = [(threshold(part, rho), part) for part in losses.split(batch)]
    return [tail.loss(part).item() for tail, part in tails], [tail.weights.sum().item() for tail, _ in tails]


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


@pytest.mark.parametrize("rho", [1.0, 0.5, 0.2, 0.05])
def test_batch_is_the_exact_cvar(rho: float) -> None:
    losses = exponential(16)
    losses[3:6] = losses[0]
    tail = BatchThreshold()(losses, rho)
    torch.testing.assert_close(tail.loss(losses), cvar(losses, rho))
    assert torch.equal(tail.weights, cvar_weights(losses, rho))
    assert tail.threshold == value_at_risk(losses, rho)


@EACH
@pytest.mark.parametrize("rho", [1.0, 0.3, 0.02])
def test_tail_at_its_own_losses(make: Callable[[], Threshold], rho: float) -> None:
    threshold = make()
    threshold(exponential(200), rho)
    losses, others = exponential(8, seed=1), exponential(24, seed=2).view(3, 8)
    tail = threshold(losses, rho, update=False)
    torch.testing.assert_close(tail.at(losses), tail.loss(losses))
    torch.testing.assert_close(tail.at(others), torch.stack([tail.at(row) for row in others]))


@EACH
def test_without_a_tail_it_is_the_mean(make: Callable[[], Threshold]) -> None:
    threshold = make()
    for seed in range(4):
        losses = exponential(5, seed) - seed  # ever lower: below a t of the past
        tail = threshold(losses, 1.0)
        torch.testing.assert_close(tail.loss(losses), losses.mean())
        torch.testing.assert_close(tail.weights, torch.full((5,), 0.2, dtype=torch.float64))


@pytest.mark.parametrize("batch", [1, 2, 4])
def test_small_batches(batch: int) -> None:
    """The batch's own CVaR is its maximum here, far below the population's; queue and learned t are right on average.

    E max of B exponentials is the harmonic number: 1, 1.5, 2.08, against CVaR = 3.30.
    """
    losses = exponential(3000)
    batchwise, _ = run(BatchThreshold(), losses, batch)
    assert mean(batchwise) == pytest.approx(sum(1 / i for i in range(1, batch + 1)), abs=0.1)
    for threshold in (QueueThreshold(), LearnedThreshold()):
        tails, weights = run(threshold, losses, batch)
        assert mean(tails) == pytest.approx(CVAR, abs=0.2)
        assert mean(weights) == pytest.approx(1.0, abs=0.1)
        assert any(w > 0 for w in weights)
        assert max(weights) <= 1 / RHO + 1e-9


def test_queue_is_the_exact_tail_of_what_it_remembers() -> None:
    losses = exponential(40)
    queue = QueueThreshold(size=30)
    for part in losses.split(8):
        tail = queue(part, 0.15)
    recent = losses[-30:]
    torch.testing.assert_close(queue.recent, recent)
    assert tail.threshold == value_at_risk(recent, 0.15)
    torch.testing.assert_close(tail.weights, cvar_weights(recent, 0.15)[-8:] * 30 / 8)
    whole = QueueThreshold(size=4)
    torch.testing.assert_close(whole(part, 0.15).weights, cvar_weights(part, 0.15))  # never less than the batch


@pytest.mark.parametrize("batch", [1, 4])
def test_learned_threshold_finds_the_quantile(batch: int) -> None:
    """From a start that is far too low; what it hovers around is the VaR of the population."""
    losses = exponential(256 + 3000 * batch)
    learned = LearnedThreshold(learning_rate=0.03 * math.sqrt(batch), warmup=0, window=256)
    learned.load_state_dict({"queue": {"recent": losses[:256]}, "value": torch.tensor(0.1), "seen": 256})
    visited = []
    for part in losses[256:].split(batch):
        tail = learned(part, RHO)
        visited.append(tail.threshold.item())
        assert learned.value is not None
        recent, step = learned.queue.recent, learned.learning_rate * learned.queue.recent.std()
        assert recent.min() - step <= learned.value <= recent.max() + step * (1 / RHO - 1)
    assert visited[0] == pytest.approx(0.1)
    assert mean(visited[len(visited) // 2 :]) == pytest.approx(VAR, abs=0.15)


LAWS: dict[str, Callable[[Tensor], Tensor]] = {
    "uniform": lambda u: u,
    "error of five queries": lambda u: (5 * u).round() / 5,
    "exponential": lambda u: -u.log(),
    "normal": lambda u: torch.special.ndtri(u),
}


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize(("batch", "rho"), [(1, 0.05), (4, 0.05), (1, 0.3)])
def test_learned_weights_are_one_on_average(batch: int, rho: float, law: str) -> None:
    """Whatever the losses: bounded ones have their quantile next to their maximum, others have ties."""
    learned = LearnedThreshold()
    losses = LAWS[law](torch.rand(2400 * batch, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    _, weights = run(learned, losses, batch, rho)
    assert mean(weights[400:]) == pytest.approx(1.0, abs=0.04)


def test_learned_threshold_is_kept_among_the_recent_losses() -> None:
    """Losses that fall as training goes on leave t behind: it may not stay above all of them."""
    learned = LearnedThreshold(learning_rate=1e-6, warmup=0, window=16)
    high, low = 50 + exponential(16), exponential(16)
    learned(high, RHO)
    assert learned.value is not None
    assert learned.value >= high.min()
    learned(low, RHO)
    assert learned.value <= low.max() + 1e-5  # one step of 1e-6 deviations up
    assert any(learned(low, RHO).weights.sum() > 0 for _ in range(round(1 / RHO)))  # that is as many steps down


def test_learned_threshold_starts_as_the_quantile() -> None:
    losses = exponential(60)
    learned, queue = LearnedThreshold(warmup=50), QueueThreshold()
    for i, part in enumerate(losses.split(10)):
        found, quantile = learned(part, RHO).threshold, queue(part, RHO).threshold
        assert (found == quantile) == (i < 5), i


@EACH
def test_saved_state_goes_on_identically(make: Callable[[], Threshold]) -> None:
    losses = exponential(400)
    first, second = make(), make()
    run(first, losses[:200], 4)
    second.load_state_dict(first.state_dict())
    assert run(first, losses[200:], 4) == run(second, losses[200:], 4)


@EACH
def test_looking_leaves_the_state_alone(make: Callable[[], Threshold]) -> None:
    threshold = make()
    run(threshold, exponential(200), 4)
    before = repr(threshold.state_dict())
    threshold(exponential(4, seed=5), RHO, update=False)
    assert repr(threshold.state_dict()) == before


@EACH
@pytest.mark.parametrize("rho", [1.0, 0.3, 0.1])
def test_weights_are_the_gradient(make: Callable[[], Threshold], rho: float) -> None:
    """Central differences of the tail loss, away from its kinks: where no loss is t itself."""
    threshold = make()
    threshold(exponential(300), rho)
    losses = exponential(20, seed=3)
    leaf = losses.clone().requires_grad_()
    tail = threshold(losses, rho, update=False)
    tail.loss(leaf).backward()
    step = 1e-6
    for i in range(len(losses)):
        if not isinstance(threshold, BatchThreshold) and losses[i] == tail.threshold:
            continue
        up, down = losses.clone(), losses.clone()
        up[i] += step
        down[i] -= step
        values = [threshold(x, rho, update=False).loss(x).item() for x in (up, down)]
        assert leaf.grad is not None
        assert leaf.grad[i].item() == pytest.approx((values[0] - values[1]) / (2 * step), abs=1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: QueueThreshold(0), "size is 0; expected a queue of at least one loss"),
        (lambda: LearnedThreshold(learning_rate=0.0), "learning_rate is 0.0 and window 256; expected > 0 and >= 1"),
        (lambda: LearnedThreshold(learning_rate=math.nan), "learning_rate is nan"),
        (lambda: LearnedThreshold(window=0), "window 0; expected > 0 and >= 1"),
    ],
)
def test_arguments_out_of_range(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


# --- in the objective -------------------------------------------------------------------------------------------------


class Location(LocalModule):
    """One shared location, one observation an episode."""

    def forward(self, y: Tensor) -> None:
        with pyro.plate("episodes", len(y), dim=-1):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(z, 1.0), obs=y)


class LocationGuide(LocalModule):
    def __init__(self) -> None:
        super().__init__()
        self.loc = nn.Parameter(torch.tensor(0.3))

    def forward(self, y: Tensor) -> None:
        with pyro.plate("episodes", len(y), dim=-1):
            pyro.sample("z", dist.Delta(self.loc.expand(len(y))))


@pytest.mark.parametrize("threshold", ["queue", "learned"])
def test_training_on_single_episodes(threshold: str) -> None:
    """B = 1: most steps feel the KL alone, a share rho of them the tail; no warning (they are errors here)."""
    model, guide = Location(), LocationGuide()
    elbo = CVaR_ELBO(rho=0.25, threshold=threshold, kl_weight=0.0)
    generator = torch.Generator().manual_seed(0)
    felt, steps = 0, 400
    for _ in range(steps):
        guide.loc.grad = None
        elbo.loss_and_grads(model, guide, torch.randn(1, generator=generator))
        assert guide.loc.grad is not None
        felt += bool(guide.loc.grad.abs() > 0)
    assert 0.15 < felt / steps < 0.4


@pytest.mark.parametrize("threshold", ["queue", "learned"])
def test_state_of_the_objective(threshold: str) -> None:
    """terms() moves the state on, loss() and evaluation leave it; a resumed objective goes on identically."""
    model, guide = Location(), LocationGuide()
    y = torch.randn(12, 4, generator=torch.Generator().manual_seed(0))

    def make() -> CVaR_ELBO:
        return CVaR_ELBO(rho=0.25, threshold=threshold)

    elbo, resumed = make(), make()
    empty = repr(elbo.state_dict())
    elbo.loss(model, guide, y[0])
    with torch.no_grad():
        elbo.loss(model, guide, y[1])
    assert repr(elbo.state_dict()) == empty
    for row in y[:6]:
        elbo.terms(model, guide, row)
    assert repr(elbo.state_dict()) != empty
    resumed.load_state_dict(elbo.state_dict())
    for row in y[6:]:
        found, expected = (e.terms(model, guide, row) for e in (resumed, elbo))
        assert torch.equal(found.loss, expected.loss)
        assert torch.equal(found.weights, expected.weights)
        assert torch.equal(found.threshold, expected.threshold)
    assert not any(t.requires_grad for t in (expected.weights, expected.threshold))


@pytest.mark.parametrize("threshold", ["batch", "queue", "learned"])
def test_all_thresholds_are_the_elbo_without_a_tail(threshold: str) -> None:
    model, guide = Location(), LocationGuide()
    elbo = CVaR_ELBO(rho=1.0, threshold=threshold)
    plain = CVaR_ELBO(rho=0.2, tail_weight=0.0)
    for seed in range(3):
        y = torch.randn(4, generator=torch.Generator().manual_seed(seed))
        results = []
        for objective in (elbo, plain):
            loss = objective.differentiable_loss(model, guide, y)
            results.append((loss.detach(), torch.autograd.grad(loss, guide.loc)[0]))
        torch.testing.assert_close(results[0], results[1])
