"""Simulation-based calibration on worlds whose posterior is exact: level, power, and what each quantity sees."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from conftest import LAWS, PRIOR, sharpen
from scipy.stats import kstest, norm
from torch import Tensor

from pyro_smat.guides import CatalogPosterior, LogisticNormalPosterior
from pyro_smat.inference.diagnostics.calibration import PosteriorCalibration, catalog_calibration, draws_calibration
from pyro_smat.inference.diagnostics.quantities import LOG_LIKELIHOOD, LOG_Q, catalog_quantities
from pyro_smat.inference.diagnostics.simulation import simulation_based_calibration
from pyro_smat.inference.diagnostics.svi_calibration import LOG_DATA, svi_simulation_based_calibration
from pyro_smat.inference.diagnostics.uniformity import holm, pit_of_catalog, pit_of_draws, uniformity_p_value
from pyro_smat.models.finite_routes import FiniteRoutes
from pyro_smat.routing import Catalog

GUIDES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "exact": lambda p: p,
    "biased": lambda p: sharpen(p / PRIOR.numpy(), 1.0),  # Bayes under another prior
    "p^1.3": lambda p: sharpen(p, 1.3),
    "p^2": lambda p: sharpen(p, 2.0),
    "prior": lambda p: np.broadcast_to(PRIOR.numpy(), p.shape),
}


def log_likelihood(x: Tensor, coefficients: Tensor) -> Tensor:
    return (coefficients.squeeze(1) @ LAWS.log())[:, x].sum(-1)


def calibrate(world: FiniteRoutes, guide: str, seed: int = 0, n: int = 400) -> PosteriorCalibration:
    return simulation_based_calibration(
        lambda count, g: world.draw(count, 5, g),
        lambda x: torch.tensor(GUIDES[guide](world.posterior(x).numpy())),
        num_simulations=n,
        log_likelihood=log_likelihood,
        seed=seed,
        power_repeats=0,
    )


@pytest.fixture(scope="module")
def repeats(world: FiniteRoutes) -> dict[str, list[PosteriorCalibration]]:
    return {guide: [calibrate(world, guide, seed) for seed in range(60)] for guide in GUIDES}


def share(results: list[PosteriorCalibration], quantity: str | None = None) -> float:
    return float(np.mean([(r.p_value if quantity is None else r.p_values[quantity]) < 0.05 for r in results]))


def test_level_and_power_over_repetitions(repeats: dict[str, list[PosteriorCalibration]]) -> None:
    """Level .05 within what sixty repetitions can tell; the benchmark has hundreds."""
    assert share(repeats["exact"]) <= 0.15
    assert share(repeats["biased"]) > 0.95
    assert share(repeats["p^2"]) == 1.0
    assert share(repeats["p^1.3"]) > 0.75


def test_only_a_data_dependent_quantity_sees_that_the_guide_is_the_prior(
    repeats: dict[str, list[PosteriorCalibration]],
) -> None:
    assert share(repeats["prior"], LOG_LIKELIHOOD) == 1.0
    blind = [name for name in repeats["prior"][0].p_values if name == LOG_Q or name.startswith("is ")]
    assert len(blind) == 5
    assert max(share(repeats["prior"], name) for name in blind) < 0.2


def test_the_temperature_says_how_much(repeats: dict[str, list[PosteriorCalibration]]) -> None:
    def estimates(guide: str) -> np.ndarray:
        return np.array([r.sharpness.estimate for r in repeats[guide]])

    assert np.median(estimates("exact")) == pytest.approx(1.0, abs=0.05)
    assert np.median(estimates("p^1.3")) == pytest.approx(1.3, abs=0.07)
    assert np.median(estimates("p^2")) == pytest.approx(2.0, abs=0.1)
    covered = {guide: np.mean([r.sharpness.calibrated for r in repeats[guide]]) for guide in ("exact", "p^1.3")}
    assert covered["exact"] > 0.85
    assert covered["p^1.3"] < 0.15


def test_exact_pit_values_are_the_limit_of_drawn_ones() -> None:
    rng = np.random.default_rng(0)
    q, values = rng.dirichlet(np.ones(4), 300), rng.integers(0, 3, (300, 4)).astype(float)
    truth = (q.cumsum(1) > rng.random((300, 1))).argmax(1)
    exact = pit_of_catalog(values, q, truth, np.random.default_rng(1))
    assert kstest(exact, "uniform").pvalue > 0.01
    rows = (q.cumsum(1)[None] > rng.random((4000, 300, 1))).argmax(-1)
    drawn = np.take_along_axis(values[None].repeat(4000, 0), rows[..., None], -1)[..., 0]
    own = values[np.arange(300), truth]
    np.testing.assert_allclose(pit_of_draws(drawn, own, np.random.default_rng(1)), exact, atol=0.05)


def test_ranks_over_k_are_always_rejected_and_random_ties_are_not() -> None:
    rng = np.random.default_rng(0)
    truth, draws = rng.standard_normal(1000), rng.standard_normal((20, 1000))
    assert uniformity_p_value((draws < truth).mean(0)) < 1e-6
    assert uniformity_p_value(pit_of_draws(draws, truth, rng)) > 0.01
    coins, drawn = rng.integers(0, 2, 1000), rng.integers(0, 2, (50, 1000))
    assert uniformity_p_value(((drawn < coins).sum(0) + rng.random(1000)) / 51) < 1e-6
    assert uniformity_p_value(pit_of_draws(drawn, coins, rng)) > 0.01


def test_holm_by_hand() -> None:
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03}) == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06})


@pytest.mark.parametrize(("sd", "shift"), [(1.0, 0.0), (0.8, 0.0), (1.0, 0.3)])
def test_gaussian_draws_known_narrow_biased(sd: float, shift: float) -> None:
    """y = z + e: the posterior is N(y / 2, 1/2). Ranks agree with the closed form of the PIT."""
    rng = np.random.default_rng(3)
    z = rng.standard_normal(500)
    y = z + rng.standard_normal(500)
    mean, scale = y / 2 + shift, sd * 0.5**0.5
    draws = mean + scale * rng.standard_normal((999, 500))
    found = draws_calibration({"z": draws}, {"z": z}, population="test", reference="model", power_repeats=50)
    np.testing.assert_allclose(found.pits["z"], norm.cdf((z - mean) / scale), atol=0.06)
    exact = sd == 1.0 and shift == 0.0
    assert (found.p_value > 0.05) == exact
    assert found.sharpness.calibrated == exact
    assert found.sharpness.kind == "deviation"
    if sd == 0.8:
        assert found.sharpness.estimate == pytest.approx(1.25, abs=0.08)
    assert found.power > 0.9


def test_posteriors_on_the_simplex() -> None:
    """Logistic-normal posteriors, truths drawn from them or from sharper ones."""
    location = torch.randn(400, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def simulate(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        posterior = LogisticNormalPosterior(location, torch.ones_like(location), num_sources=3)
        return posterior.sample(1, generator)[0], location

    def guide(scale: float) -> Callable[[Tensor], LogisticNormalPosterior]:
        return lambda x: LogisticNormalPosterior(x, scale * torch.ones_like(x), num_sources=3)

    exact = simulation_based_calibration(simulate, guide(1.0), power_repeats=0)
    narrow = simulation_based_calibration(simulate, guide(0.7), power_repeats=0)
    assert exact.p_value > 0.05
    assert narrow.p_value < 0.01
    assert set(exact.pits) == {LOG_Q, "weight 0", "weight 1", "weight 2"}


def test_mixed_catalogs_have_weights_and_a_dataset(world: FiniteRoutes) -> None:
    catalog = Catalog.k_hot(("a", "b", "c"), max_sources=2)
    q = np.random.default_rng(0).dirichlet(np.ones(6), 200)
    truth = (q.cumsum(1) > np.random.default_rng(1).random((200, 1))).argmax(1)
    quantities = catalog_quantities(
        q, names=catalog.names, coefficients=catalog.coefficients.numpy(), sources=("a", "b", "c")
    )
    assert {"is a+b", "weight of a"} <= set(quantities)
    found = catalog_calibration(q, truth, quantities, population="test", reference="model", power_repeats=20)
    data = found.to_dataset()
    assert data["pit"].dims == ("quantity", "episode")
    assert 0 <= data.attrs["power"] <= 1
    assert found.coverage[LOG_Q] == pytest.approx([0.5, 0.8, 0.9, 0.95], abs=0.1)


def test_refused(world: FiniteRoutes, make_router: Callable) -> None:
    router = make_router("catalog")
    with pytest.raises(ValueError, match="takes the support as given"):
        simulation_based_calibration(router.model, router.guide.posterior)
    with pytest.raises(ValueError, match="at least 100"):
        calibrate(world, "exact", n=50)
    q = np.full((200, 2), 0.5)
    with pytest.raises(ValueError, match="holds NaN"):
        catalog_calibration(q, np.zeros(200, int), {"f": np.array([0.0, np.nan])}, population="test", reference="model")
    with pytest.raises(ValueError, match="expected routings in"):
        catalog_calibration(q, np.full(200, 2), {"f": np.arange(2.0)}, population="test", reference="model")


def mixed(y: Tensor) -> None:
    """k ~ Bern(.3), z ~ N(0, 1), y ~ N(3 k + z, 1): the posterior is exact below."""
    with pyro.plate("items", len(y), dim=-1):
        k = pyro.sample("k", dist.Bernoulli(0.3))
        z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
        pyro.sample("y", dist.Normal(3 * k + z, 1.0), obs=y)


def mixed_guide(power: float = 1.0, blind: bool = False) -> Callable[[Tensor], None]:
    def guide(y: Tensor) -> None:
        normal = torch.distributions.Normal
        logit = np.log(0.3 / 0.7) + normal(3.0, 2**0.5).log_prob(y) - normal(0.0, 2**0.5).log_prob(y)
        with pyro.plate("items", len(y), dim=-1):
            k = pyro.sample("k", dist.Bernoulli(0.3) if blind else dist.Bernoulli(logits=power * logit))
            spread = (0.5 / power) ** 0.5
            pyro.sample("z", dist.Normal(0.0, 1.0) if blind else dist.Normal((y - 3 * k) / 2, spread))

    return guide


def test_any_pyro_pair_with_a_discrete_latent() -> None:
    def run(guide: Callable[[Tensor], None]) -> PosteriorCalibration:
        return svi_simulation_based_calibration(
            mixed, guide, lambda seen: (seen["y"],), torch.zeros(500), plate="items", power_repeats=0
        )

    exact, sharp, blind = run(mixed_guide()), run(mixed_guide(2.0)), run(mixed_guide(blind=True))
    assert set(exact.pits) == {LOG_Q, LOG_DATA, "k", "z"}
    assert exact.p_value > 0.05
    assert sharp.p_value < 1e-3
    assert blind.rejected == (LOG_DATA,)


def test_a_catalog_posterior_object(world: FiniteRoutes) -> None:
    catalog = Catalog.k_hot(("a", "b", "c", "d"))

    def guide(x: Tensor) -> CatalogPosterior:
        return CatalogPosterior(world.posterior(x).log(), catalog, num_sources=4)

    found = simulation_based_calibration(
        lambda n, g: world.draw(n, 5, g), guide, log_likelihood=lambda x, c: log_likelihood(x, c.double())
    )
    assert found.p_value > 0.05
    assert 0.5 < found.power <= 1
