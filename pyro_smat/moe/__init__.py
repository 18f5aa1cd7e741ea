"""Mixture-of-experts transformers: routers whose logits are latent.

In: any network with routers of experts. Out: the same network, attached, whose routing a function, a Pyro model
(``models/variational_routing.py``) or a guide (``guides/moe_routing.py``) can say.

``contracts`` says which routers are understood and how to add one, ``surgery`` attaches, ``calls`` is what a routing
function sees, ``forwards`` what an attached router runs, ``selection`` draws experts without replacement, ``priors``
and ``divergences`` serve the model, ``modes`` makes routing functions of posteriors, ``prediction`` predicts,
``generation`` continues prompts, ``baselines``, ``measures``, ``signals`` and ``cost`` are for experiments.
"""

from pyro_smat.moe.calls import Chosen, Router, RouterCall, RoutingFunction
from pyro_smat.moe.contracts import UnknownRouter
from pyro_smat.moe.generation import generate
from pyro_smat.moe.modes import expected_routing, mean_routing, sampled_routing
from pyro_smat.moe.prediction import Prediction, predict, trajectories
from pyro_smat.moe.priors import (
    CostAwarePrior,
    GaussianPrior,
    LoadBalancingPrior,
    LogTemperaturePrior,
    PaperTemperaturePrior,
    RouterPrior,
)
from pyro_smat.moe.surgery import Attachment, attach, attachment_of, detach, find_routers

__all__ = [
    "Attachment",
    "Chosen",
    "CostAwarePrior",
    "GaussianPrior",
    "LoadBalancingPrior",
    "LogTemperaturePrior",
    "PaperTemperaturePrior",
    "Prediction",
    "Router",
    "RouterCall",
    "RouterPrior",
    "RoutingFunction",
    "UnknownRouter",
    "attach",
    "attachment_of",
    "detach",
    "expected_routing",
    "find_routers",
    "generate",
    "mean_routing",
    "predict",
    "sampled_routing",
    "trajectories",
]
