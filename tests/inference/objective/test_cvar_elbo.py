"""CVaR_ELBO against Pyro's own ELBOs (rho = 1), against values computed by hand, finite differences and brute force."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.optim
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO
from pyro.infer.elbo import ELBO
from torch import Tensor, nn
from torch.distributions import kl_divergence
from torch.nn import functional as F

from pyro_smat.inference import CVaR_ELBO
from pyro_smat.metrics.risk import cvar
from pyro_smat.routing.local_module import LocalModule

RHOS = (1.0, 0.5, 0.2, 0.05)
TIGHT: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-9}
small_tail = pytest.mark.filterwarnings("ignore:rho x B")


@pytest.fixture(autouse=True)
def double() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def value_and_gradient(elbo: ELBO, model: Callable, guide: Callable, args: tuple, parameters: list) -> list[Tensor]:
    """The loss and all gradients (zero where there is none) at seed 3."""
    pyro.set_rng_seed(3)
    loss = elbo.differentiable_loss(model, guide, *args)
    grads = torch.autograd.grad(loss, parameters, allow_unused=True)
    return [loss.detach(), *(torch.zeros_like(p) if g is None else g for p, g in zip(parameters, grads, strict=True))]


def assert_same(found: list[Tensor], expected: list[Tensor]) -> None:
    scale = max(float(e.abs().max()) for e in expected[1:] if e.numel())
    assert scale > 1e-3, "no gradient: the comparison would show nothing"
    for f, e in zip(found, expected, strict=True):
        torch.testing.assert_close(f, e, rtol=1e-9, atol=1e-9 * max(scale, 1.0))


def assert_one_loss(elbo: CVaR_ELBO, model: Callable, guide: Callable, args: tuple, parameters: list) -> None:
    """loss == differentiable_loss == loss_and_grads == elbo(model, guide)(...), and their gradients."""
    expected = value_and_gradient(elbo, model, guide, args, parameters)
    pyro.set_rng_seed(3)
    assert elbo.loss(model, guide, *args) == pytest.approx(expected[0].item(), rel=1e-12)
    for p in parameters:
        p.grad = None
    pyro.set_rng_seed(3)
    assert elbo.loss_and_grads(model, guide, *args) == pytest.approx(expected[0].item(), rel=1e-12)
    assert_same([expected[0], *(torch.zeros_like(p) if p.grad is None else p.grad for p in parameters)], expected)
    pyro.set_rng_seed(3)
    assert_same([expected[0], *expected[1:]], value_and_gradient(elbo, model, guide, args, parameters))
    if isinstance(model, nn.Module) and isinstance(guide, nn.Module):
        pyro.set_rng_seed(3)
        torch.testing.assert_close(elbo(model, guide)(*args).detach(), expected[0], **TIGHT)


# --- routers, against Pyro's ELBOs ------------------------------------------------------------------------------------

PAIRS = [
    ("logistic_normal", Trace_ELBO, "sampled"),
    ("logistic_normal", TraceMeanField_ELBO, "exact"),
    ("point", Trace_ELBO, "sampled"),
    ("point", TraceMeanField_ELBO, "exact"),
    ("catalog", TraceEnum_ELBO, "exact"),
]


@pytest.mark.parametrize("nesting", [2, math.inf], ids=["nesting given", "nesting guessed"])
@pytest.mark.parametrize(("particles", "vectorised"), [(1, False), (1, True), (3, False), (3, True)])
@pytest.mark.parametrize(("family", "reference", "kl"), PAIRS)
def test_mean_tail_is_the_elbo(
    family: str, reference: type[ELBO], kl: Any, particles: int, vectorised: bool, nesting: float, make_router: Callable
) -> None:
    router = make_router(family)
    options: dict[str, Any] = {
        "num_particles": particles,
        "vectorize_particles": vectorised,
        "max_plate_nesting": nesting,
    }
    args = (router.model, router.guide, (router.batch,), router.parameters())
    ours, theirs = CVaR_ELBO(rho=1.0, kl=kl, **options), reference(**options)
    if nesting == math.inf:
        theirs.loss(*args[:2], router.batch)  # at its first call Pyro's object draws once more, to guess the nesting
    assert_same(value_and_gradient(ours, *args), value_and_gradient(theirs, *args))
    assert_one_loss(CVaR_ELBO(rho=1.0, kl=kl, **options), *args)


@small_tail
@pytest.mark.parametrize("family", ["logistic_normal", "point", "catalog"])
def test_losses_agree_below_one(family: str, make_router: Callable) -> None:
    router = make_router(family)
    for vectorised in (False, True):
        elbo = CVaR_ELBO(rho=0.3, num_particles=2, vectorize_particles=vectorised, tail_weight=0.7, kl_weight=0.4)
        assert_one_loss(elbo, router.model, router.guide, (router.batch,), router.parameters())


@small_tail
@pytest.mark.parametrize("local", [False, True], ids=["default settings", "module_local_params"])
@pytest.mark.parametrize("family", ["logistic_normal", "point", "catalog"])
def test_svi_steps_learn(family: str, local: bool, make_router: Callable) -> None:
    with pyro.settings.context(module_local_params=local):
        pyro.clear_param_store()
        router, other = make_router(family), make_router(family, seed=9)
        svi = SVI(router.model, router.guide, pyro.optim.Adam({"lr": 0.02}), loss=CVaR_ELBO(rho=0.5))
        untouched = [p.detach().clone() for p in other.parameters()]
        pyro.set_rng_seed(0)
        losses = [svi.step(router.batch) for _ in range(30)]
        assert sum(losses[-8:]) < sum(losses[:8])
        assert svi.evaluate_loss(router.batch) < losses[0]
        assert all(torch.equal(a, b) for a, b in zip(untouched, other.parameters(), strict=True))
        assert not list(pyro.get_param_store().keys())


# --- a conjugate toy: z_i ~ N(0, 1), y_ij ~ N(z_i, s^2) ---------------------------------------------------------------

NOISE = 0.8


class Toy(LocalModule):
    """The model, over all episodes or a subsample; ``scaled`` puts a constant poutine.scale around the plates."""

    def __init__(self, options: dict | None = None, scaled: float = 1.0) -> None:
        super().__init__()
        self.options = options or {}
        self.scaled = scaled

    def forward(self, y: Tensor) -> None:
        with poutine.scale(scale=self.scaled), pyro.plate("episodes", len(y), dim=-2, **self.options) as rows:
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            with pyro.plate("points", y.shape[1], dim=-1):
                pyro.sample("y", dist.Normal(z, NOISE), obs=y[rows])


class ToyGuide(LocalModule):
    def __init__(self, episodes: int, options: dict | None = None, scaled: float = 1.0) -> None:
        super().__init__()
        self.options = options or {}
        self.scaled = scaled
        generator = torch.Generator().manual_seed(5)
        self.loc = nn.Parameter(torch.randn(episodes, 1, generator=generator))
        self.raw = nn.Parameter(0.3 * torch.randn(episodes, 1, generator=generator))

    def forward(self, y: Tensor) -> None:
        with poutine.scale(scale=self.scaled), pyro.plate("episodes", len(y), dim=-2, **self.options) as rows:
            pyro.sample("z", dist.Normal(self.loc[rows], F.softplus(self.raw[rows])))


class PointToyGuide(LocalModule):
    def __init__(self, loc: Tensor) -> None:
        super().__init__()
        self.loc = nn.Parameter(loc)

    def forward(self, y: Tensor) -> None:
        with pyro.plate("episodes", len(y), dim=-2):
            pyro.sample("z", dist.Delta(self.loc))


def toy_data(episodes: int = 16, points: int = 3) -> Tensor:
    return 1.5 * torch.randn(episodes, points, generator=torch.Generator().manual_seed(1))


def tail_by_hand(losses: list[float], rho: float) -> tuple[float, list[float]]:
    """CVaR and its weights by sorting, ties at the boundary sharing equally; plain floats."""
    size = max(1.0, rho * len(losses))
    threshold = sorted(losses, reverse=True)[math.ceil(size - 1e-9) - 1]
    above, tied = sum(x > threshold for x in losses), sum(x == threshold for x in losses)
    weights = [1 / size if x > threshold else (size - above) / tied / size if x == threshold else 0.0 for x in losses]
    return sum(w * x for w, x in zip(weights, losses, strict=True)), weights


@pytest.mark.parametrize("options", [{"subsample_size": 6}, {"subsample": torch.tensor([1, 4, 5, 12])}])
@pytest.mark.parametrize(("reference", "kl"), [(Trace_ELBO, "sampled"), (TraceMeanField_ELBO, "exact")])
@pytest.mark.parametrize(("particles", "vectorised"), [(1, False), (3, False), (3, True)])
def test_subsampled_episodes_scale_as_in_pyro(
    options: dict, reference: type[ELBO], kl: Any, particles: int, vectorised: bool
) -> None:
    y = toy_data()
    model, guide = Toy(options), ToyGuide(16, options)
    nesting: dict[str, Any] = {"num_particles": particles, "vectorize_particles": vectorised, "max_plate_nesting": 2}
    args = (model, guide, (y,), list(guide.parameters()))
    expected = value_and_gradient(reference(**nesting), *args)
    assert_same(value_and_gradient(CVaR_ELBO(rho=1.0, kl=kl, **nesting), *args), expected)


@small_tail
def test_subsampled_tail_is_positively_homogeneous() -> None:
    """N episodes, B drawn: N x (CVaR of the drawn + mean KL of the drawn)."""
    y, rows = toy_data(), torch.tensor([1, 4, 5, 12])
    options = {"subsample": rows}
    whole, part = CVaR_ELBO(rho=0.5), CVaR_ELBO(rho=0.5)
    guide, alone = ToyGuide(16, options), ToyGuide(4)
    alone.loc.data, alone.raw.data = guide.loc.data[rows], guide.raw.data[rows]
    found = value_and_gradient(part, Toy(options), guide, (y,), list(guide.parameters()))
    expected = value_and_gradient(whole, Toy(), alone, (y[rows],), list(alone.parameters()))
    torch.testing.assert_close(found[0], expected[0] * 16 / 4, **TIGHT)
    torch.testing.assert_close(found[1][rows], expected[1] * 4, **TIGHT)


@pytest.mark.parametrize(("reference", "kl"), [(Trace_ELBO, "sampled"), (TraceMeanField_ELBO, "exact")])
def test_constant_scale_is_as_in_pyro(reference: type[ELBO], kl: Any) -> None:
    y, model, guide = toy_data(), Toy(scaled=2.5), ToyGuide(16, scaled=2.5)
    args = (model, guide, (y,), list(guide.parameters()))
    expected = value_and_gradient(reference(), *args)
    assert_same(value_and_gradient(CVaR_ELBO(rho=1.0, kl=kl), *args), expected)
    unscaled = ToyGuide(16)
    plain = value_and_gradient(CVaR_ELBO(rho=0.5, kl=kl), Toy(), unscaled, (y,), list(unscaled.parameters()))
    assert_same(value_and_gradient(CVaR_ELBO(rho=0.5, kl=kl), *args), [2.5 * p for p in plain])


@small_tail
@pytest.mark.parametrize("rho", RHOS)
@pytest.mark.parametrize("particles", [1, 3])
@pytest.mark.parametrize("tail_weight", [1.0, 0.4, 0.0])
def test_value_by_hand(rho: float, particles: int, tail_weight: float) -> None:
    """B ((1 - kappa) mean X + kappa CVaR X + lambda mean KL), X averaged over particles first."""
    y, model, guide = toy_data(), Toy(), ToyGuide(16)
    elbo = CVaR_ELBO(rho=rho, kl_weight=0.3, tail_weight=tail_weight, num_particles=particles)
    pyro.set_rng_seed(11)
    terms = elbo.terms(model, guide, y)
    pyro.set_rng_seed(11)
    draws = [poutine.trace(guide).get_trace(y).nodes["z"]["value"].detach() for _ in range(particles)]
    constant = math.log(NOISE) + 0.5 * math.log(2 * math.pi)
    losses = [
        sum((0.5 * ((y[i] - z[i]) / NOISE) ** 2 + constant).sum().item() for z in draws) / particles for i in range(16)
    ]
    loc, scale = guide.loc.detach().squeeze(-1), F.softplus(guide.raw.detach()).squeeze(-1)
    kl = -scale.log() + 0.5 * (scale**2 + loc**2 - 1)
    tail, weights = tail_by_hand(losses, rho)
    mean = sum(losses) / 16
    expected = 16 * ((1 - tail_weight) * mean + tail_weight * tail + 0.3 * kl.mean().item())
    assert terms.loss.item() == pytest.approx(expected, rel=1e-9)
    assert terms.tail_loss.item() == pytest.approx(tail, rel=1e-9)
    assert terms.mean_loss.item() == pytest.approx(mean, rel=1e-9)
    assert terms.kl.item() == pytest.approx(kl.mean().item(), rel=1e-9)
    assert terms.negative_elbo.item() == pytest.approx(sum(losses) + kl.sum().item(), rel=1e-9)
    assert terms.threshold.item() == pytest.approx(sorted(losses, reverse=True)[max(1, math.ceil(rho * 16)) - 1])
    torch.testing.assert_close(terms.weights, torch.tensor(weights), **TIGHT)
    torch.testing.assert_close(terms.episode_losses, torch.tensor(losses), **TIGHT)
    torch.testing.assert_close(terms.episode_kl, kl, **TIGHT)
    assert not any(t.requires_grad for t in (terms.weights, terms.tail_loss, terms.episode_losses, terms.kl))


@small_tail
@pytest.mark.parametrize("rho", RHOS)
@pytest.mark.parametrize(("particles", "vectorised"), [(1, False), (3, False), (3, True)])
def test_gradient_is_the_finite_difference(rho: float, particles: int, vectorised: bool) -> None:
    y, model, guide = toy_data(), Toy(), ToyGuide(16)
    options: dict[str, Any] = {"num_particles": particles, "vectorize_particles": vectorised, "max_plate_nesting": 2}
    elbo = CVaR_ELBO(rho=rho, kl_weight=0.3, tail_weight=0.8, **options)
    parameters = list(guide.parameters())
    gradient = value_and_gradient(elbo, model, guide, (y,), parameters)[1:]
    step = 1e-5

    def loss() -> float:
        pyro.set_rng_seed(3)
        return elbo.loss(model, guide, y)

    for parameter, found in zip(parameters, gradient, strict=True):
        for row in range(16):
            with torch.no_grad():
                parameter[row] += step
                up = loss()
                parameter[row] -= 2 * step
                down = loss()
                parameter[row] += step
            assert found[row].item() == pytest.approx((up - down) / (2 * step), rel=1e-6, abs=1e-6)


@small_tail
@pytest.mark.parametrize("rho", RHOS)
@pytest.mark.parametrize("ties", [False, True])
def test_gradient_closed_form(rho: float, ties: bool) -> None:
    """A point guide: dL/dm_i = B w_i sum_j (m_i - y_ij) / s^2 + lambda m_i, ties sharing what is left of the tail."""
    y = toy_data()
    loc = torch.linspace(-1, 1, 16).unsqueeze(1)
    if ties:  # episodes 2..7 are copies of the worst one, 8..10 of the best
        worst = int((y - loc).square().sum(1).argmax())
        y[2:8], loc[2:8] = y[worst], loc[worst]
        best = int((y - loc).square().sum(1).argmin())
        y[8:11], loc[8:11] = y[best], loc[best]
    guide = PointToyGuide(loc)
    elbo = CVaR_ELBO(rho=rho, kl_weight=0.3)
    gradient = value_and_gradient(elbo, Toy(), guide, (y,), [guide.loc])[1].squeeze(-1)
    losses = [0.5 * ((y[i] - loc[i]) / NOISE).square().sum().item() for i in range(16)]
    _, weights = tail_by_hand(losses, rho)
    if ties:
        assert sum(w > 0 for w in weights) > max(1, math.ceil(rho * 16)) or rho in (1.0, 0.5)
    pull = (loc - y).sum(1) / NOISE**2
    expected = 16 * torch.tensor(weights) * pull + 0.3 * loc.squeeze(-1)
    torch.testing.assert_close(gradient, expected, **TIGHT)


def alternating_guide() -> Callable:
    """Particle 0 is off at the even episodes, particle 1 at the odd ones."""
    calls = [0]

    def guide(y: Tensor) -> None:
        parity = calls[0] % 2
        calls[0] += 1
        loc = torch.where(torch.arange(len(y)).unsqueeze(1) % 2 == parity, 2.0, 0.0)
        with pyro.plate("episodes", len(y), dim=-2):
            pyro.sample("z", dist.Delta(loc))

    return guide


@small_tail
def test_particles_are_averaged_before_the_tail() -> None:
    y = torch.zeros(8, 1)
    miss = 0.5 * (2 / NOISE) ** 2
    floor = math.log(NOISE) + 0.5 * math.log(2 * math.pi)
    elbo = CVaR_ELBO(rho=0.5, kl_weight=0.0, num_particles=2)
    found = elbo.loss(Toy(), alternating_guide(), y)
    assert found == pytest.approx(8 * (floor + miss / 2), rel=1e-12)
    one, guide = CVaR_ELBO(rho=0.5, kl_weight=0.0), alternating_guide()
    other_order = (one.loss(Toy(), guide, y) + one.loss(Toy(), guide, y)) / 2
    assert other_order == pytest.approx(8 * (floor + miss), rel=1e-12)


# --- the catalog, by brute force --------------------------------------------------------------------------------------


@small_tail
@pytest.mark.parametrize("rho", [1.0, 0.6, 0.25])
@pytest.mark.parametrize("nesting", [2, math.inf])
@pytest.mark.parametrize(("particles", "vectorised"), [(1, False), (2, True)])
def test_catalog_is_the_sum_over_all_routings(
    rho: float, nesting: float, particles: int, vectorised: bool, make_router: Callable
) -> None:
    router = make_router("catalog", episodes=7)
    router.model.eval()
    elbo = CVaR_ELBO(
        rho=rho,
        kl_weight=0.7,
        max_plate_nesting=nesting,
        num_particles=particles,
        vectorize_particles=vectorised,
    )
    found = value_and_gradient(elbo, router.model, router.guide, (router.batch,), router.parameters())

    batch, posterior = router.batch, router.guide.posterior(router.batch)
    q = posterior.logits.softmax(-1)
    expected_losses = []
    for i in range(len(batch)):
        total = torch.zeros(())
        for j, row in enumerate(posterior.coefficients):
            logits = router.model.logits(row.expand(len(batch), -1), batch)[i]
            nll = F.cross_entropy(logits, batch.query.labels[i], reduction="none")[batch.query.mask[i]].sum()
            total = total + q[i, j] * nll
        expected_losses.append(total)
    losses = torch.stack(expected_losses)
    prior = torch.distributions.Categorical(logits=router.model.prior.logits)
    kl = kl_divergence(torch.distributions.Categorical(logits=posterior.logits), prior)
    loss = len(batch) * (cvar(losses, rho) + 0.7 * kl.mean())
    grads = torch.autograd.grad(loss, router.parameters(), allow_unused=True)
    parameters = zip(router.parameters(), grads, strict=True)
    assert_same(found, [loss.detach(), *(torch.zeros_like(p) if g is None else g for p, g in parameters)])


@small_tail
def test_zero_probability_routings_count_nothing() -> None:
    """0 log 0 = 0: a guide that rules a route out (and a prior that forbids it) has a finite loss."""
    logits = torch.tensor([[0.3, -math.inf, 0.1]], requires_grad=True)
    prior = torch.tensor([0.2, -math.inf, 0.5])

    def model(y: Tensor) -> None:
        with pyro.plate("episodes", len(y), dim=-1):
            k = pyro.sample("k", dist.Categorical(logits=prior))
            pyro.sample("y", dist.Normal(k.to(y), 1.0), obs=y)

    def guide(y: Tensor) -> None:
        with pyro.plate("episodes", len(y), dim=-1):
            pyro.sample("k", dist.Categorical(logits=logits.expand(len(y), -1)), infer={"enumerate": "parallel"})

    loss = CVaR_ELBO(rho=1.0).differentiable_loss(model, guide, torch.tensor([0.0, 2.0]))
    q = torch.tensor([0.3, 0.1]).softmax(0)
    p = torch.tensor([0.2, 0.5]).softmax(0)
    nll = -dist.Normal(torch.tensor([0.0, 2.0]), 1.0).log_prob(torch.tensor([[0.0], [2.0]]))
    expected = (nll @ q).sum() + 2 * (q * (q / p).log()).sum()
    torch.testing.assert_close(loss.detach(), expected, **TIGHT)
    loss.backward()
    assert torch.isfinite(logits.grad).all()  # type: ignore[arg-type]


# --- regret -----------------------------------------------------------------------------------------------------------


def test_tail_over_regret() -> None:
    """Weights come from X - r; r is a number: no gradient reaches the parameter that it was computed from."""
    y, model, guide = toy_data(), Toy(), PointToyGuide(torch.linspace(-1, 1, 16).unsqueeze(1))
    shift = nn.Parameter(torch.tensor(1.0))
    seen = []

    def reference(batch: Tensor) -> Tensor:
        seen.append(torch.is_grad_enabled())
        return shift * batch.square().sum(1)

    elbo = CVaR_ELBO(rho=0.5, reference=reference, kl_weight=0.0, tail_weight=0.6)
    terms = elbo.terms(model, guide, y)
    losses = (
        0.5 * ((y - guide.loc) / NOISE).square().sum(1) + 3 * (math.log(NOISE) + 0.5 * math.log(2 * math.pi))
    ).detach()
    regret = losses - y.square().sum(1)
    tail, weights = tail_by_hand(regret.tolist(), 0.5)
    assert terms.tail_loss.item() == pytest.approx(tail)
    torch.testing.assert_close(terms.weights, torch.tensor(weights), **TIGHT)
    assert not torch.equal(terms.weights > 0, torch.tensor(tail_by_hand(losses.tolist(), 0.5)[1]) > 0)
    assert terms.loss.item() == pytest.approx(16 * (0.4 * losses.mean().item() + 0.6 * tail))
    terms.loss.backward()
    assert shift.grad is None
    assert seen == [False]
    pull = (guide.loc.detach() - y).sum(1) / NOISE**2
    expected = 16 * (0.4 / 16 + 0.6 * torch.tensor(weights)) * pull
    torch.testing.assert_close(guide.loc.grad.squeeze(-1), expected, **TIGHT)  # type: ignore[union-attr]


# --- warnings ---------------------------------------------------------------------------------------------------------


def test_small_tail_warns_once() -> None:
    y, elbo = toy_data(), CVaR_ELBO(rho=0.25)
    with pytest.warns(UserWarning, match=r"rho x B = 0.25 x 16 < 5"):
        elbo.loss(Toy(), ToyGuide(16), y)
    elbo.loss(Toy(), ToyGuide(16), y)  # warnings are errors here
    CVaR_ELBO(rho=5 / 16).loss(Toy(), ToyGuide(16), y)
    CVaR_ELBO(rho=0.01, tail_weight=0.0).loss(Toy(), ToyGuide(16), y)


def test_nan_loss_warns() -> None:
    y = toy_data()
    elbo = CVaR_ELBO(rho=1.0, episode_loss=lambda fn, labels, mask: fn.log_prob(labels) * math.nan)
    with pytest.warns(UserWarning, match="NaN"):
        assert math.isnan(elbo.loss(Toy(), ToyGuide(16), y))
