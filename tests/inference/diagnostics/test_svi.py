"""Any Pyro pair with a plate: a variational autoencoder with discrete and continuous latents, and a conjugate
Gaussian.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import arviz as az
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray as xr
from pyro import poutine
from torch import Tensor, nn

from pyro_smat.inference.diagnostics.pareto import khat_per_episode
from pyro_smat.inference.diagnostics.svi import episode_draws, svi_to_datatree
from pyro_smat.routing.local_module import LocalModule

SD = 0.7
SHIFT = 0.0


class Autoencoder(LocalModule):
    """z ~ N(0, I_2), k ~ Cat(3), x | z, k: five Gaussian pixels; the encoder is linear."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.decoder, self.encoder, self.kind = nn.Linear(2, 5), nn.Linear(5, 4), nn.Linear(5, 3)
        self.register_buffer("shift", torch.randn(3, 5, generator=torch.Generator().manual_seed(1)))

    def forward(self, x: Tensor) -> None:
        with pyro.plate("images", len(x), dim=-2):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            kind = pyro.sample("kind", dist.Categorical(torch.ones(3) / 3))
            mean = pyro.deterministic("mean", self.decoder(z) + self.shift[kind], event_dim=1)
            with pyro.plate("pixels", x.shape[-1], dim=-1):
                pyro.sample("x", dist.Normal(mean.squeeze(-2), 1.0), obs=x)

    def guide(self, x: Tensor) -> None:
        location, scale = self.encoder(x).chunk(2, -1)
        with pyro.plate("images", len(x), dim=-2):
            normal = dist.Normal(location.unsqueeze(1), scale.exp().unsqueeze(1)).to_event(1)
            pyro.sample("z", normal)
            pyro.sample("kind", dist.Categorical(logits=self.kind(x).unsqueeze(1)))


def data(count: int = 6) -> Tensor:
    return torch.randn(count, 5, generator=torch.Generator().manual_seed(2))


def gaussian_model(y: Tensor) -> None:
    """z ~ N(0, 1), y ~ N(z, 1): the posterior is N(y / 2, 1/2)."""
    with pyro.plate("items", len(y), dim=-1):
        z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
        pyro.sample("y", dist.Normal(z, 1.0), obs=y)


def gaussian_guide(ratio: float = 1.0, shift: float = 0.0):  # type: ignore[no-untyped-def]
    def guide(y: Tensor) -> None:
        with pyro.plate("items", len(y), dim=-1):
            pyro.sample("z", dist.Normal(y / 2 + shift, ratio * 0.5**0.5))

    return guide


Y = torch.linspace(-2, 2, 40, dtype=torch.float64)


def test_log_weights_are_those_of_a_direct_computation() -> None:
    model, x = Autoencoder(), data()
    draws = episode_draws(model, model.guide, x, plate="images", num_samples=5)
    z, kind = torch.tensor(draws.latents["z"]), torch.tensor(draws.latents["kind"])
    assert z.shape == (5, 6, 2)
    assert draws.dims["z"] == ("images", "z_dim_0")
    assert draws.dims["x"] == ("images", "pixels")
    assert draws.log_likelihood["x"].shape == (5, 6, 5)
    with torch.no_grad():
        location, scale = model.encoder(x).chunk(2, -1)
        q = torch.distributions.Normal(location, scale.exp()).log_prob(z).sum(-1)
        q = q + model.kind(x).log_softmax(-1).expand(5, -1, -1).gather(-1, kind.unsqueeze(-1)).squeeze(-1)
        prior = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(-1) - np.log(3)
        mean = model.decoder(z) + model.shift[kind]
        joint = prior + torch.distributions.Normal(mean, 1.0).log_prob(x).sum(-1)
    np.testing.assert_allclose(draws.log_q, q, rtol=1e-5)
    np.testing.assert_allclose(draws.log_prior, prior, rtol=1e-5)
    np.testing.assert_allclose(draws.log_p, joint, rtol=1e-5)


def test_a_datatree_with_the_plates_as_dims(tmp_path: Path) -> None:
    model, x = Autoencoder(), data()
    tree = svi_to_datatree(episode_draws(model, model.guide, x, plate="images", num_samples=120))
    assert tree["posterior"]["z"].dims == ("chain", "draw", "images", "z_dim_0")
    assert tree["posterior"]["mean"].dims == ("chain", "draw", "images", "mean_dim_0")
    assert tree["posterior"]["kind"].dims == ("chain", "draw", "images")
    assert tree["log_likelihood"]["x"].dims == ("chain", "draw", "images", "pixels")
    assert tree["sample_stats"]["khat"].dims == ("chain", "images")
    tree.to_netcdf(tmp_path / "vae.nc", engine="h5netcdf")
    with xr.open_datatree(tmp_path / "vae.nc", engine="h5netcdf") as again:
        np.testing.assert_array_equal(again["posterior"]["z"], tree["posterior"]["z"])
    assert az.summary(tree, var_names=["z"], kind="stats").shape[0] == 12


def test_khat_known_biased_narrow_and_per_episode() -> None:
    def khat(ratio: float, shift: float = 0.0) -> np.ndarray:
        return episode_draws(gaussian_model, gaussian_guide(ratio, shift), Y, plate="items").khat().khat

    assert (khat(1.0) == -np.inf).all()
    narrow = khat(0.5)
    assert np.median(narrow) == pytest.approx(0.68, abs=0.08)
    assert (khat(1.0, 4.0) > 0.7).all()


def test_the_sum_over_episodes_is_another_matter() -> None:
    """Pyro's own diagnostic adds the log weights of all episodes up: every one is fine, and the sum is hopeless."""
    many = torch.linspace(-2, 2, 400, dtype=torch.float64)
    draws = episode_draws(gaussian_model, gaussian_guide(0.8), many, plate="items", num_samples=500)
    assert np.median(draws.khat().khat) < 0.5
    assert khat_per_episode(draws.log_p.sum(1, keepdims=True), draws.log_q.sum(1, keepdims=True)).khat > 0.9


def test_a_prior_swap_is_bayes_rule_and_a_far_prior_is_refused() -> None:
    def with_prior(mean: float, sd: float):  # type: ignore[no-untyped-def]
        def model(y: Tensor) -> None:
            with pyro.plate("items", len(y), dim=-1):
                z = pyro.sample("z", dist.Normal(torch.full((), mean, dtype=y.dtype), sd))
                pyro.sample("y", dist.Normal(z, 1.0), obs=y)

        return model

    old = episode_draws(gaussian_model, gaussian_guide(), Y, plate="items", num_samples=1000)
    near = episode_draws(with_prior(0.4, 0.9), gaussian_guide(), Y, plate="items", num_samples=1000)
    found = old.swap_prior(near)
    assert found.reliable.all()
    mean = (np.exp(found.log_weights) * old.latents["z"]).sum(0)
    np.testing.assert_allclose(mean, (Y.numpy() + 0.4 / 0.81) / (1 + 1 / 0.81), atol=0.12)
    far = episode_draws(with_prior(9.0, 0.2), gaussian_guide(), Y, plate="items", num_samples=1000)
    assert not old.swap_prior(far).reliable.any()
    with pytest.raises(ValueError, match="at other draws"):
        old.swap_prior(episode_draws(gaussian_model, gaussian_guide(0.8), Y, plate="items", num_samples=1000))


def test_masks_count_and_scales_do_not() -> None:
    def scaled(y: Tensor) -> None:
        with poutine.scale(scale=7.0), poutine.mask(mask=y < 10):
            gaussian_model(y)

    y = torch.cat([Y[:3], torch.tensor([20.0])])
    plain = episode_draws(gaussian_model, gaussian_guide(), y, plate="items", num_samples=4)
    other = episode_draws(scaled, gaussian_guide(), y, plate="items", num_samples=4)
    np.testing.assert_allclose(other.log_p[:, :3], plain.log_p[:, :3])
    assert (other.log_p[:, 3] == 0).all()
    assert np.isnan(other.log_likelihood["y"][:, 3]).all()


def test_the_global_generator_is_left_alone() -> None:
    state = torch.get_rng_state()
    episode_draws(gaussian_model, gaussian_guide(), Y, plate="items", num_samples=2)
    assert torch.equal(state, torch.get_rng_state())


def test_refused() -> None:
    def global_latent(y: Tensor) -> None:
        scale = pyro.sample("scale", dist.Gamma(1.0, 1.0))
        with pyro.plate("items", len(y), dim=-1):
            pyro.sample("y", dist.Normal(0.0, scale), obs=y)

    def global_guide(_: Tensor) -> None:
        pyro.sample("scale", dist.Gamma(2.0, 1.0))

    def subsampled(y: Tensor) -> None:
        with pyro.plate("items", len(y), subsample_size=5, dim=-1) as rows:
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(z, 1.0), obs=y[rows])

    def guide(y: Tensor) -> None:
        with pyro.plate("items", len(y), subsample_size=5, dim=-1):
            pyro.sample("z", dist.Normal(torch.zeros(5), 1.0))

    with pytest.raises(ValueError, match="'scale' is outside plate 'items'"):
        episode_draws(global_latent, global_guide, Y, plate="items", num_samples=3)
    with pytest.raises(ValueError, match="other episodes in every draw"):
        episode_draws(subsampled, guide, Y, plate="items", num_samples=3)
    with pytest.raises(ValueError, match="no plate 'episodes'"):
        episode_draws(gaussian_model, gaussian_guide(), Y, num_samples=3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pyro warns of it too
        with pytest.raises(ValueError, match="expected the same sites"):
            episode_draws(gaussian_model, global_guide, Y, plate="items", num_samples=3)


def test_loo_of_arviz_one_episode_at_a_time_is_the_closed_form() -> None:
    """Without its own point an item has no data: the leave-one-out density of y is N(0, sqrt 2), whatever the others
    are.

    The guide is wider than its target, so that weights to the prior of the latent are bounded enough.
    """
    tree = svi_to_datatree(episode_draws(gaussian_model, gaussian_guide(1.6), Y, plate="items", num_samples=4000))
    stats = tree["sample_stats"]
    loo = az.loo_approximate_posterior(tree, stats["log_p"], stats["log_q"], pointwise=True)
    exact = torch.distributions.Normal(0.0, 2**0.5).log_prob(Y).numpy()
    np.testing.assert_allclose(loo.elpd_i.values, exact, atol=0.12)
    one = tree.isel(items=[3, 20])  # ArviZ warns of a single point
    alone = az.loo_approximate_posterior(
        one, one["sample_stats"]["log_p"], one["sample_stats"]["log_q"], pointwise=True
    )
    assert float(alone.elpd_i.values[0]) == pytest.approx(float(loo.elpd_i.values[3]), abs=1e-9)
