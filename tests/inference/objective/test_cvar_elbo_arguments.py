"""Arguments of CVaR_ELBO: ranges, and what a reference returns."""

from __future__ import annotations

import math

import pytest
import torch
from elbo_programs import B, simple_guide, simple_model

from pyro_smat.inference import CVaR_ELBO

pytestmark = pytest.mark.usefixtures("double_precision")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rho": 0.0}, r"rho is 0.0; expected a tail fraction in \(0, 1\]"),
        ({"rho": 1.01}, r"rho is 1.01; expected a tail fraction in \(0, 1\]"),
        ({"rho": -0.1}, r"rho is -0.1"),
        ({"rho": math.nan}, r"rho is nan"),
        ({"kl_weight": -1.0}, r"kl_weight is -1.0 and entropy_weight None; expected >= 0"),
        ({"kl_weight": math.nan}, r"kl_weight is nan and entropy_weight None; expected >= 0"),
        ({"entropy_weight": -0.1}, r"kl_weight is 1.0 and entropy_weight -0.1; expected >= 0"),
        ({"entropy_weight": math.nan}, r"entropy_weight nan; expected >= 0"),
        ({"tail_weight": 1.5}, r"tail_weight \(kappa\) is 1.5; expected 0"),
        ({"tail_weight": -0.5}, r"tail_weight \(kappa\) is -0.5"),
        ({"kl": "analytic"}, r"kl is 'analytic'; expected 'exact' or 'sampled'"),
        (
            {"episode_loss": "mse"},
            r"there is no episode_loss 'mse'; expected one of brier, .*, predictive_nll",
        ),
        ({"threshold": "mean"}, r"threshold is 'mean'; expected one of \['batch', 'learned', 'queue'\] or an object"),
        ({"baseline": "mean"}, r"baseline is 'mean'; expected one of \('none', 'leave_one_out', 'decaying_average'\)"),
        ({"baseline": "leave_one_out"}, r"needs num_particles >= 2; use 'decaying_average' with one"),
    ],
)
def test_options_out_of_range(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CVaR_ELBO(**options)


@pytest.mark.parametrize("shape", [(), (1,), (B, 1), (B + 1,)])
def test_reference_of_another_shape(shape: tuple[int, ...]) -> None:
    elbo = CVaR_ELBO(rho=1.0, reference=lambda: torch.zeros(shape))
    with pytest.raises(ValueError, match=rf"reference returned shape .*; expected \({B},\)"):
        elbo.loss(simple_model, simple_guide)
