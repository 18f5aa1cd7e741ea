"""Simulation-based calibration of any Pyro model and guide with a plate, discrete latents included.

The model runs unconditioned: every element of the plate is one simulation, its latents are the truth and its observed
sites the data of the guide. Quantities: every latent (coordinate by coordinate), log q, and log p(data | latents),
which alone sees a guide that ignores the data.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from pyro import poutine
from torch import Tensor

from pyro_smat.inference.diagnostics.calibration import POWER_REPEATS, PosteriorCalibration, draws_calibration
from pyro_smat.inference.diagnostics.quantities import LOG_Q
from pyro_smat.inference.diagnostics.svi import EpisodeDraws, Program, episode_draws
from pyro_smat.metrics.arrays import FloatArray

MOST_COORDINATES = 16
LOG_DATA = "log p(data | latents)"


@torch.no_grad()
def svi_simulation_based_calibration(
    model: Program,
    guide: Program,
    arguments: Callable[[Mapping[str, Tensor]], tuple[Any, ...]],
    *args: Any,
    plate: str = "episodes",
    num_samples: int = 100,
    seed: int = 0,
    power_repeats: int = POWER_REPEATS,
) -> PosteriorCalibration:
    """Calibration of a guide under the model's own simulations.

    Args:
        model: run on ``args`` with its observed sites sampled; the plate's size is N, at least 100.
        guide: takes the same arguments as the model.
        arguments: simulated values of the observed sites -> the arguments with these data in place of the old.
        args: of the model, such as data of the right shape.
        plate: of the simulations.
        num_samples: K draws of the guide a simulation.
        seed: of simulation and draws.
        power_repeats: simulations of the power; 0 leaves it out.

    Raises:
        ValueError: as :func:`episode_draws` and :func:`draws_calibration`.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        simulated = poutine.trace(poutine.uncondition(model)).get_trace(*args)
    observed = {
        name: site["value"]
        for name, site in simulated.nodes.items()
        if site["type"] == "sample" and site["infer"].get("was_observed")
    }
    new_args = arguments(observed)
    drawn = episode_draws(model, guide, *new_args, plate=plate, num_samples=num_samples, seed=seed + 1)
    # The guide replayed at the simulated latents: the same scores at the truth.
    truth = episode_draws(model, poutine.replay(guide, trace=simulated), *new_args, plate=plate, num_samples=1)
    draws, truths = _quantities(drawn), _quantities(truth)
    return draws_calibration(
        draws,
        {name: values[0] for name, values in truths.items()},
        population=f"{drawn.log_q.shape[1]} simulations of the model",
        reference="model",
        seed=seed,
        power_repeats=power_repeats,
    )


def _quantities(draws: EpisodeDraws) -> dict[str, FloatArray]:
    """name -> ``(K, N)``."""
    found: dict[str, FloatArray] = {LOG_Q: draws.log_q, LOG_DATA: draws.log_p - draws.log_prior}
    for name, values in draws.latents.items():
        dims = draws.dims[name]
        if draws.plate not in dims or name in draws.derived:
            continue
        flat = np.moveaxis(values, 1 + dims.index(draws.plate), 1).reshape(*values.shape[:1], draws.log_q.shape[1], -1)
        for c in range(min(flat.shape[-1], MOST_COORDINATES)):
            found[name if flat.shape[-1] == 1 else f"{name}[{c}]"] = flat[..., c].astype(np.float64)
    return found
