"""Routers of format 3, read as format 4: the names of sections and options have changed, the numbers have not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pyro_smat.inference.decision.format_3 import decision_from_format_3, deployment_from_format_3

_COST = ("beta", "target_cost", "costs", "learn", "hyperprior")
_USED_BY_PRIOR = {
    "uniform": (),
    "cost_aware": _COST,
    "logistic_normal": ("scale",),
    "dirichlet": ("concentration",),
    "concrete": ("temperature",),
    "simplex_cost": _COST,
    "hierarchical": ("learn",),
    "mixture": ("weights", "learn", "hyperprior", "kl"),
}
_USED_BY_GUIDE = {
    "logistic_normal": ("covariance", "rank"),
    "concrete": ("temperature", "final_temperature", "per_episode", "straight_through"),
    "dirichlet": ("concentration",),
    "catalog": ("estimator",),
    "hierarchical": ("estimator",),
    "point": (),
}


def from_format_3(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of router.json in format 4, without a digest of the weights, which format 3 had not."""
    config = values["config"]
    return {
        "format": 4,
        "weights": "",
        "network": {"kind": values["network"], **values["network_options"]},
        "source_names": values["source_names"],
        "catalog": values["catalog"],
        "config": _config(config, values["own_classes"]),
        "deployment": deployment_from_format_3(values["abstention"], config["decision"]).to_dict(),
    }


def _config(old: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    experts, guide, sources = dict(old["experts"]), old["guide"], old["sources"]
    over_catalog = guide["family"] in ("catalog", "hierarchical")
    options = {name: guide[name] for name in _USED_BY_GUIDE[guide["family"]]}
    if over_catalog:
        search = dict(guide["catalog"])
        method = search.pop("method")
        used: tuple[str, ...] = ("max_sources",) if method == "k_hot" else ("max_sources", "size", "episodes")
        used += ("beam_width",) if method == "beam" else ()
        options |= {"temperature": guide["relaxation"], "catalog": {"kind": method, **{k: search[k] for k in used}}}
    gates = experts.pop("masks")
    return {
        "seed": old["seed"],
        "data": old["data"],
        "episodes": _episodes(old["episodes"]),
        "sources": {
            **({"network": {"kind": sources["network"], **sources["options"]}} if sources["files"] else {}),
            "files": sources["files"],
            "blocks": sources["blocks"],
            "head": sources["head"],
            "descriptors": guide["descriptors"],
        },
        "model": {"kind": own["model"] or "routed", **old["head"], "gates": gates},
        "prior": _prior(old["prior"], guide["family"]),
        "guide": {
            "kind": own["guide"] or guide["family"],
            "encoder": {"kind": guide["encoder"], "hidden": guide["hidden"]},
            **options,
        },
        "objective": {**old["objective"], "episode_loss": old["objective"]["episode_loss"]},
        "training": {
            **old["training"],
            "orthogonality": experts.pop("orthogonality"),
            "temperature_scaling": guide["calibrate"],
        },
        "experts": experts,
        "decision": decision_from_format_3(old["decision"]),
    }


def _prior(old: Mapping[str, Any], family: str) -> dict[str, Any]:
    used = _USED_BY_PRIOR[old["kind"]]
    if old["kind"] in ("uniform", "cost_aware") and family in ("logistic_normal", "point"):
        used = ("scale",) if old["kind"] == "uniform" else ("beta", "costs", "scale")
    elif old["kind"] == "uniform" and family in ("concrete", "dirichlet"):
        used = ("concentration",)
    prior = {"kind": old["kind"], **{name: old[name] for name in used}}
    if old["components"]:
        prior["components"] = [_prior(part, family) for part in old["components"]]
    return prior


def _episodes(old: Mapping[str, Any]) -> dict[str, Any]:
    episodes, corruptions = dict(old), []
    wrong = episodes.pop("corruption")
    imbalance = episodes.pop("imbalance")
    if imbalance:
        corruptions.append({"kind": "class_imbalance", "imbalance": imbalance})
    if wrong["confounding"]:
        corruptions.append({"kind": "confounding", "probability": wrong["confounding"]})
    if wrong["label_noise"]:
        corruptions.append(
            {"kind": "label_noise", "fraction": wrong["label_noise"], "probability": wrong["label_noise_probability"]}
        )
    return {**episodes, "corruptions": corruptions}
