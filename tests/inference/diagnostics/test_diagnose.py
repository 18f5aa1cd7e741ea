"""Everything at once on small routers, and the rules that turn results into verdicts."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr

from pyro_smat.episodes import EpisodeBatch
from pyro_smat.inference.diagnostics import Diagnosis, RoutingDraws, concentration, diagnose
from pyro_smat.inference.diagnostics.figures import concentration_picture, khat_picture, prior_path_picture
from pyro_smat.inference.diagnostics.prior_swap import PriorPath
from pyro_smat.inference.diagnostics.shots import concentration_over_shots, source_probabilities
from pyro_smat.inference.diagnostics.verdicts import of_calibration, of_concentration
from pyro_smat.models.finite_routes import FiniteRoutes
from pyro_smat.routing import Catalog

EPISODES = 240


def batches_with_routes(router, power: float = 1.0) -> list[EpisodeBatch]:  # type: ignore[no-untyped-def]
    """Routes drawn from the guide's own posterior raised to a power: at 1 it is calibrated by construction."""
    generator = torch.Generator().manual_seed(5)
    batches = [router.batch[i : i + 60] for i in range(0, EPISODES, 60)]
    found = []
    for batch in batches:
        q = torch.tensor(source_probabilities(router.guide, [batch])) ** power
        found.append(replace(batch, route=torch.multinomial(q, 1, generator=generator).squeeze(1)))
    return found


@pytest.fixture
def catalog_router(make_router: Callable):  # type: ignore[no-untyped-def]
    names = ("source0", "source1", "source2")
    return make_router("catalog", sources=3, experts=0, catalog=Catalog.k_hot(names), episodes=EPISODES)


def verdict(found: Diagnosis, question: str) -> str:
    return next(v.answer for v in found.verdicts if v.question.startswith(question))


def test_a_calibrated_router(catalog_router, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    router = catalog_router
    batches = batches_with_routes(router)
    found = diagnose(
        router.model,
        router.guide,
        batches,
        source_of_route=(0, 1, 2),
        costs=np.arange(3.0),
        num_samples=40,
        against={"same": RoutingDraws.collect(router.model, router.guide, batches, num_samples=40)},
    )
    assert found.results["route_calibration"].overall.p_value > 0.05
    assert verdict(found, "Is q(route)") in ("ok", "cannot tell")
    assert found.results["route_calibration"].overall.reference == "route"
    assert "concentration" in found.left_out  # some classes have a single shot
    assert {"route_calibration", "reliability", "prior_path", "weights"} <= set(found.pictures)
    assert found.results["support_posterior"].reference == "support"
    folder = found.write(tmp_path / "report")
    data = json.loads((folder / "diagnostics.json").read_text())
    assert len(data["verdicts"]) == len(found.verdicts)
    assert data["results"]["information"]["collapse"] == found.results["information"].collapse
    with xr.open_datatree(folder / "diagnostics.nc", engine="h5netcdf") as tree:
        assert tree["prior_sbc"]["log q"].sizes["draw"] == EPISODES
    for name, picture in found.pictures.items():
        assert (folder / f"{name}.svg").stat().st_size > 1000
        assert "Good" in picture.caption or name == "routing_sets"
    assert str(found).count("\n") == len(found.verdicts) - 1


def test_a_router_that_is_too_sharp_and_one_that_is_biased(catalog_router) -> None:  # type: ignore[no-untyped-def]
    router = catalog_router
    sharp = diagnose(
        router.model, router.guide, batches_with_routes(router, 0.3), source_of_route=(0, 1, 2), num_samples=20
    )
    assert verdict(sharp, "Is q(route)") == "look"
    assert sharp.results["route_calibration"].overall.sharpness.low > 1
    shifted = diagnose(
        router.model, router.guide, batches_with_routes(router), source_of_route=(1, 2, 0), num_samples=20
    )
    assert verdict(shifted, "Is q(route)") == "look"


def test_a_simplex_router_and_its_seeds(make_router: Callable) -> None:
    router = make_router("logistic_normal", sources=3, experts=1, episodes=60)
    other = make_router("logistic_normal", sources=3, experts=1, episodes=60, seed=1)
    found = diagnose(
        router.model, router.guide, [router.batch], other_guides=[other.guide], num_samples=120, costs=np.arange(4.0)
    )
    assert verdict(found, "Is q(route)") == "cannot tell"
    assert verdict(found, "Do guides of other training seeds") == "look"
    assert found.results["khat"].reference == "model"
    assert found.tree["posterior"].sizes["chain"] == 2
    assert "label_calibration" in found.left_out


def test_a_point_router_is_told_what_does_not_apply(make_router: Callable) -> None:
    router = make_router("point", sources=3, experts=0, episodes=60)
    found = diagnose(router.model, router.guide, [router.batch], num_samples=20, costs=np.arange(3.0))
    assert "density" in found.left_out["khat"]
    assert "point posterior" in found.left_out["prior_path"]


def test_few_episodes_cannot_tell(catalog_router) -> None:  # type: ignore[no-untyped-def]
    router = catalog_router
    batch = batches_with_routes(router)[0][:30]
    found = diagnose(router.model, router.guide, [batch], source_of_route=(0, 1, 2), num_samples=20)
    assert verdict(found, "Is q(route)") == "cannot tell"
    assert {"information", "label_calibration", "concentration"} <= set(found.left_out)


def test_shots_of_a_router(make_router: Callable, make_episode: Callable) -> None:
    for family in ("catalog", "dirichlet"):
        router = make_router(family, sources=3, experts=0)
        batch = router.features.attach(EpisodeBatch.collate([make_episode(3, 4, 2, seed) for seed in range(6)]))
        prior = np.full(3, 1 / 3)
        found = concentration_over_shots(
            router.model.prior, router.guide, [batch], (1, 2, 4), prior_probabilities=prior, truth=np.zeros(6, int)
        )
        assert found.shots.tolist() == [1, 2, 4]
        assert found.contraction.shape == (3, 6)
        assert concentration_picture(found).figure.axes
        if family == "catalog":
            with torch.no_grad():
                full = router.guide.eval().posterior(batch).source_weights.numpy()
            np.testing.assert_allclose(1 - found.doubt[-1], full[:, 0])  # type: ignore[index]
        with pytest.raises(ValueError, match="only \\(1, 2, 4\\)"):
            concentration_over_shots(router.model.prior, router.guide, [batch], (1, 2, 4, 8), prior_probabilities=prior)


def test_doubt_that_grows_again_is_looked_at(world: FiniteRoutes) -> None:
    truth, x = world.draw(400, 24, torch.Generator().manual_seed(0))
    shots, prior = (2, 8, 24), world.prior.numpy()
    q = np.stack([world.posterior(x[:, :n]).numpy() for n in shots])
    assert of_concentration(concentration(shots, q, prior, truth=truth.numpy())).answer == "ok"
    tempered = q ** np.array([1.0, 1.0, 0.1])[:, None, None]  # as if the last shots were averaged, not added up
    found = of_concentration(
        concentration(shots, tempered / tempered.sum(-1, keepdims=True), prior, truth=truth.numpy())
    )
    assert found.answer == "look"
    assert "grows again" in found.because


def test_pictures_without_much_to_show() -> None:
    assert khat_picture(np.array([-np.inf, 0.4, np.inf]), 0.7).figure.axes
    nan = np.array([np.nan, 1.0])
    path = PriorPath(np.array([0.0, 1.0]), nan, nan, nan, np.array([1.0, 0.0]))
    assert "cannot reach" in prior_path_picture(path).caption


def test_ok_needs_power(catalog_router) -> None:  # type: ignore[no-untyped-def]
    found = (
        diagnose(
            catalog_router.model,
            catalog_router.guide,
            batches_with_routes(catalog_router),
            source_of_route=(0, 1, 2),
            num_samples=20,
        )
        .results["route_calibration"]
        .overall
    )
    fine = replace(found, p_value=0.5, power=0.9)
    assert of_calibration("q", fine, "").answer == "ok"
    assert of_calibration("q", replace(fine, power=0.2), "").answer == "cannot tell"
    assert of_calibration("q", replace(fine, p_value=0.01), "").answer == "look"
