"""Ablations: prior, weight of the KL, of the tail and its fraction, catalog size, encoders and descriptors."""

from __future__ import annotations

from typing import Any

from trials.variations import BASE, VariationTrial

CHANGES: dict[str, dict[str, Any]] = {
    BASE: {},
    "prior: cost-aware, beta 1": {"prior": {"kind": "cost_aware", "beta": 1.0}},
    "prior: cost-aware, beta learned": {"prior": {"kind": "cost_aware", "beta": 1.0, "learn": True}},
    "KL weight 0": {"objective": {"kl_weight": 0.0}},
    "KL weight .1": {"objective": {"kl_weight": 0.1}},
    "KL weight 1": {"objective": {"kl_weight": 1.0}},
    "tail weight 0": {"objective": {"tail_weight": 0.0}},
    "tail weight 1": {"objective": {"tail_weight": 1.0}},
    "rho .2": {"objective": {"rho": 0.2, "threshold": "queue"}},
    "rho .8": {"objective": {"rho": 0.8}},
    "tail of the loss, not of regret": {"objective": {"reference": "none"}},
    "also halfway from the fallback": {"guide": {"catalog": {"kind": "wise_ft"}}},
    "mixtures of up to 2 sources": {"guide": {"catalog": {"max_sources": 2}}},
    "mixtures of up to 3 sources": {"guide": {"catalog": {"max_sources": 3}}},
    "encoder: attention": {"guide": {"encoder": "prototype_attention"}},
    "encoder: moments": {"guide": {"encoder": "prototype_moments"}},
    "encoder: deep sets": {"guide": {"encoder": "deep_sets"}},
    "without descriptors": {"sources": {"descriptors": False}},
    "trusting every label": {"model": {"label_noise": 0.0}},
}
TRIAL = VariationTrial("Ablations", CHANGES)
