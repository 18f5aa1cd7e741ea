"""Experts: with and without, how many, how sparse, and what shares a gate, at the same learning rate.

Routers with experts run networks in training; they draw the same episodes as the others.
"""

from __future__ import annotations

from typing import Any

from bench import CORRUPTIONS, merged
from options import MARKS
from outcomes import EXPERT_ALONE

from trials.variations import BASE, VariationTrial

CHANGES: dict[str, dict[str, Any]] = {
    "one expert, 10% of the coordinates": {},
    "KL weight .1": {"objective": {"kl_weight": 0.1}},
    "tail of the loss, not of regret": {"objective": {"reference": "none"}},
    "KL weight .1, tail of the loss": {"objective": {"kl_weight": 0.1, "reference": "none"}},
    "marks in training": {"episodes": {"corruptions": (*CORRUPTIONS, MARKS | {"probability": 0.25})}},
    "two experts, 10% of the coordinates": {"experts": {"count": 2}},
    "half of the coordinates": {"experts": {"sparsity": 0.5}},
    "all coordinates": {"experts": {"sparsity": 0.0}},
    "3% of the coordinates": {"experts": {"sparsity": 0.97}},
    "10%, whole channels": {"experts": {"granularity": "channel"}},
    "10%, whole tensors": {"experts": {"granularity": "tensor"}},
    "10% of the coordinates, top-k gates": {"experts": {"gates": "top_k"}},
    "twice the steps": {"training": {"steps": 400}},
}
TRIAL = VariationTrial("Experts", {BASE: {}} | {name: merged(EXPERT_ALONE, told) for name, told in CHANGES.items()})
