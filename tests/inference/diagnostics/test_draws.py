"""Draws of every family against the posterior and the model they come from, and the DataTree that ArviZ makes use
of.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import arviz as az
import numpy as np
import pytest
import torch
import xarray as xr

from pyro_smat.guides import CatalogPosterior
from pyro_smat.inference.diagnostics.datatree import to_datatree
from pyro_smat.inference.diagnostics.draws import RoutingDraws
from pyro_smat.inference.diagnostics.predictive import predictive_comparison

FAMILIES = ("catalog", "hierarchical", "logistic_normal", "concrete", "dirichlet", "point")


def collect(router, num_samples: int = 12, seed: int = 0) -> RoutingDraws:  # type: ignore[no-untyped-def]
    halves = [router.batch[:2], router.batch[2:]]
    return RoutingDraws.collect(router.model, router.guide, halves, num_samples=num_samples, seed=seed)


@pytest.mark.parametrize("blocks", [1, 2])
@pytest.mark.parametrize("experts", [0, 2])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_with_experts_and_blocks(make_router: Callable, family: str, experts: int, blocks: int) -> None:
    router = make_router(family, sources=3, experts=experts, blocks=blocks)
    draws = collect(router)
    episodes, queries = router.batch.query.labels.shape
    assert draws.coefficients.shape == (12, episodes, *(blocks,) * (blocks > 1), 3 + experts)
    np.testing.assert_allclose(draws.coefficients[..., :3].sum(-1), 1.0)
    assert draws.log_likelihood.shape == (12, episodes, queries)
    with torch.no_grad():
        posterior, basis = router.guide.eval().posterior(router.batch), router.model.eval().basis()
        coefficients = torch.tensor(draws.coefficients)
        log_p = router.model.logits(coefficients, router.batch, basis).log_softmax(-1)
        expected = log_p.gather(-1, router.batch.query.labels.expand(12, -1, -1).unsqueeze(-1)).squeeze(-1)
        shown = np.broadcast_to(router.batch.query.mask.numpy(), draws.log_likelihood.shape)
        np.testing.assert_allclose(draws.log_likelihood[shown], expected.numpy()[shown])
        assert np.isnan(draws.log_likelihood[~shown]).all()
        if family == "point":
            assert np.isnan(draws.log_q).all()
        else:
            known = draws.coefficients.min(axis=tuple(range(2, draws.coefficients.ndim))) > 1e-12
            known |= isinstance(posterior, CatalogPosterior)  # weights that underflow say less than their logarithm
            assert known.mean() > 0.5
            own = posterior.log_prob(coefficients).numpy()
            np.testing.assert_allclose(draws.log_q[known], own[known], rtol=1e-4, atol=1e-4)
    tree = to_datatree(draws)
    assert tree["posterior"]["source_weight"].dims == (
        "chain", "draw", "episode", *(("block",) * (blocks > 1)), "source"
    )  # fmt: skip
    assert ("expert_weight" in tree["posterior"]) == (experts > 0)
    assert list(tree["posterior"]["source"].values) == ["source0", "source1", "source2"]
    assert ("routing" in tree["posterior"]) == isinstance(posterior, CatalogPosterior)


@pytest.mark.parametrize(
    ("family", "experts", "blocks"), [("catalog", 0, 1), ("hierarchical", 2, 2), ("dirichlet", 0, 2), ("point", 2, 1)]
)
def test_files_keep_the_tree(make_router: Callable, tmp_path: Path, family: str, experts: int, blocks: int) -> None:
    """With and without what only catalogs, experts, blocks or densities bring."""
    tree = to_datatree(collect(make_router(family, sources=3, experts=experts, blocks=blocks)))
    for name, written in {"h5netcdf": tmp_path / "draws.nc", "zarr": tmp_path / "draws.zarr"}.items():
        if name == "zarr":
            tree.to_zarr(written, consolidated=False)
        else:
            tree.to_netcdf(written, engine=name)
        with xr.open_datatree(written, engine=name, **({"consolidated": False} if name == "zarr" else {})) as again:
            again.load()
            assert set(again.children) == set(tree.children)
            xr.testing.assert_allclose(again["posterior"].to_dataset(), tree["posterior"].to_dataset())
            assert again.attrs["reference"] == "model"


def test_the_prior_and_the_densities_are_the_models(make_router: Callable) -> None:
    router = make_router("catalog", sources=3, experts=0)
    draws = collect(router, num_samples=4000)
    assert draws.routing is not None
    assert draws.probabilities is not None
    assert draws.prior_probabilities is not None
    shares = np.stack([(draws.routing == j).mean(0) for j in range(len(draws.routings))], axis=1)
    np.testing.assert_allclose(shares, draws.probabilities, atol=0.04)
    np.testing.assert_allclose(draws.log_prior, np.log(draws.prior_probabilities)[draws.routing], rtol=1e-6)
    prior_mean = draws.prior_probabilities @ router.guide.catalog.coefficients.numpy()
    np.testing.assert_allclose(draws.prior_coefficients.mean((0, 1)), prior_mean, atol=0.02)


def test_the_same_seed_is_the_same_draws_and_the_global_generator_is_left_alone(make_router: Callable) -> None:
    router = make_router("dirichlet")
    state = torch.get_rng_state()
    first, again, other = collect(router), collect(router), collect(router, seed=1)
    assert torch.equal(state, torch.get_rng_state())
    np.testing.assert_array_equal(first.coefficients, again.coefficients)
    np.testing.assert_array_equal(first.predicted, again.predicted)
    assert (first.coefficients != other.coefficients).any()


def test_refused(make_router: Callable) -> None:
    router = make_router("catalog")
    with pytest.raises(ValueError, match="at least one of each"):
        RoutingDraws.collect(router.model, router.guide, [])
    draws = collect(router)
    with pytest.raises(ValueError, match="same number of draws"):
        to_datatree([draws, collect(router, num_samples=7)])
    other = replace(draws, labels=draws.labels[::-1])
    with pytest.raises(ValueError, match="other episodes"):
        to_datatree([draws, other])
    with pytest.raises(ValueError, match="have sources"):
        to_datatree([draws, replace(draws, sources=("a", "b", "c"))])
    with pytest.raises(ValueError, match="no draws"):
        to_datatree([])


@pytest.fixture
def seeds(make_router: Callable) -> list[RoutingDraws]:
    """Three guides of the same episodes: two agree, the third was pushed away."""
    router = make_router("logistic_normal", sources=3, experts=0)
    found = [collect(router, num_samples=120, seed=0), collect(router, num_samples=120, seed=1)]
    with torch.no_grad():
        router.guide.router.source_head.bias.zero_()
        router.guide.router.source_head.weight.add_(3.0)
    return [*found, collect(router, num_samples=120, seed=2)]


def test_arviz_runs_on_it(seeds: list[RoutingDraws]) -> None:
    one, several = to_datatree(seeds[0], pits={"log q": np.linspace(0.01, 0.99, 99)}), to_datatree(seeds)
    picked = {"coords": {"episode": [0, 1]}, "backend": "matplotlib"}
    assert az.summary(one, var_names=["source_weight"], kind="stats").shape[0] == 12
    figures = [
        az.plot_forest(one, var_names=["source_weight"], **picked),
        az.plot_ridge(one, var_names=["source_weight"], **picked),
        az.plot_dist(one, var_names=["source_weight"], **picked),
        az.plot_prior_posterior(one, var_names=["source_weight"], **picked),
        az.plot_pair(one, var_names=["source_weight"], **picked),
        az.plot_rank(several, var_names=["source_weight"], **picked),
        az.plot_ecdf_pit(one, group="prior_sbc", backend="matplotlib"),
    ]
    compared = predictive_comparison({"a": seeds[0].log_likelihood, "b": seeds[2].log_likelihood})
    figures += [
        az.plot_khat(compared.elpd["a"], backend="matplotlib"),
        az.plot_compare(compared.table, backend="matplotlib"),
    ]
    for plot in figures:
        figure = plot.viz["figure"].item() if "figure" in plot.viz else plot.viz["/"]["figure"].item()
        assert figure.axes


def test_rhat_over_training_seeds_finds_the_guide_that_disagrees(seeds: list[RoutingDraws]) -> None:
    agree, differ = az.rhat(to_datatree(seeds[:2])), az.rhat(to_datatree(seeds))
    assert agree["source_weight"].dims == ("episode", "source")
    assert float(agree["source_weight"].max()) < 1.05
    assert float(differ["source_weight"].max()) > 1.1
