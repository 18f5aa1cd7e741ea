"""router.json as format 3 had it, for a router over three sources."""

from __future__ import annotations

from typing import Any

PRIOR = {
    "kind": "uniform",
    "beta": 1.0,
    "target_cost": None,
    "costs": None,
    "scale": 2.0,
    "concentration": 1.0,
    "temperature": 1.0,
    "learn": False,
    "hyperprior": None,
    "components": [],
    "weights": None,
    "kl": "sampled",
}
GUIDE = {
    "family": "logistic_normal",
    "encoder": "evidence",
    "hidden": 8,
    "descriptors": True,
    "covariance": "diagonal",
    "rank": 2,
    "temperature": 1.0,
    "final_temperature": 0.3,
    "per_episode": True,
    "straight_through": False,
    "concentration": 2.0,
    "estimator": "enumerate",
    "relaxation": 0.5,
    "catalog": {"method": "k_hot", "max_sources": 1, "size": 32, "episodes": 64, "beam_width": 4},
    "calibrate": False,
}


def as_format_3(
    *, guide: dict[str, Any] | None = None, prior: dict[str, Any] | None = None, **changes: Any
) -> dict[str, Any]:
    """router.json of format 3 for the tiny network of the tests."""
    values = {
        "format": 3,
        "network": "conv4",
        "network_options": {"in_channels": 1, "channels": 4, "image_size": 16, "stem": "pool"},
        "source_names": ["a", "b", "c"],
        "own_classes": {"model": None, "guide": None},
        "catalog": None,
        "config": {
            "seed": 0,
            "data": {
                "kind": "glyphs",
                "path": None,
                "size": 8,
                "channels": 1,
                "train": "train",
                "validation": "validation",
                "test": "test",
            },
            "episodes": {
                "way": [2, 4],
                "shot": [2, 3],
                "query": 2,
                "attributes": None,
                "domains": None,
                "imbalance": 0.2,
                "skip_small_classes": False,
                "corruption": {"label_noise": [0.0, 0.5], "label_noise_probability": 0.5, "confounding": 0.3},
            },
            "sources": {"network": "conv4", "options": {}, "files": {}, "blocks": {}, "head": []},
            "experts": {
                "count": 2,
                "sparsity": 0.6,
                "granularity": "coordinate",
                "gates": "hard_concrete",
                "budget": "projection",
                "dual_learning_rate": 0.05,
                "ramp": 0.5,
                "masks": "separate",
                "orthogonality": 0.25,
            },
            "prior": {**PRIOR, **(prior or {})},
            "guide": {**GUIDE, **(guide or {})},
            "head": {"metric": "euclidean", "scale": 4.0},
            "objective": {
                "rho": 0.5,
                "tail_weight": 0.5,
                "kl_weight": 0.02,
                "entropy_weight": None,
                "episode_loss": "ensemble_nll",
                "reference": "best_source",
                "threshold": "batch",
                "baseline": "none",
                "num_particles": 1,
                "distillation": {
                    "routing": 0.0,
                    "prediction": 0.0,
                    "temperature": 1.0,
                    "on": "support",
                    "max_sources": 1,
                },
            },
            "training": {
                "steps": 100,
                "episodes": 10,
                "learning_rate": 0.003,
                "delta_learning_rate": 0.001,
                "gate_learning_rate": 0.05,
                "weight_decay": 0.01,
                "clip_norm": 1.0,
                "warmup": 20,
                "kl_warmup": 0,
                "kl_cycles": 1,
                "validate_every": 40,
                "checkpoint_every": 100,
                "validation_episodes": 48,
                "precision": "auto",
            },
            "decision": {
                "rule": "ensemble",
                "draws": 6,
                "k": 2,
                "masks": 0,
                "score": "auto",
                "threshold": "least_loss",
                "coverage": 0.5,
                "fallback": "source 0",
            },
            "custom": {"model": None, "guide": None},
        },
        "abstention": {
            "score": "KL to the prior",
            "threshold": "never",
            "coverage": 1.0,
            "fallback": "source 0",
            "predictor": None,
            "misrouting": {"scores": [0.0, 1.0], "probabilities": [0.1, 0.3]},
            "certificate": None,
        },
    }
    return values | changes
