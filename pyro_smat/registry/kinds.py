"""Kinds: what can be named in a config, where its files are, and what the program hands to their constructors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True)
class Kind:
    """One kind of thing.

    Attributes:
        name: in errors and in :func:`~pyro_smat.registry.register`.
        room: the package whose files are of this kind.
        supplied: constructor arguments that the program supplies: name -> what it is. All others are options.
        base: "module:Class" that annotations use for it, so that one option may be another registered thing.
        default: the name that stands where such an option is not given.
        call: what a function of this kind is called with in the end: its other parameters are its options.
    """

    name: str
    room: str
    supplied: Mapping[str, str]
    base: str | None = None
    default: str | None = None
    call: tuple[str, ...] = ()


_SHAPE = {"num_sources": "R", "num_experts": "M", "num_blocks": "L"}
_CATALOG = {"catalog": "the routings of a guide over a catalog"}

KINDS: Mapping[str, Kind] = MappingProxyType(
    {
        kind.name: kind
        for kind in (
            Kind(
                "model",
                "pyro_smat.models",
                {
                    "network": "the TaskNetwork",
                    "library": "the SourceLibrary",
                    "prior": "the prior over routings",
                    "experts": "the ExpertBank, or None",
                    "compute_dtype": "of task parameters and features",
                    "straight_through": "whether the guide draws one-hot weights",
                },
                "pyro_smat.models.routed:RoutedModel",
            ),
            Kind(
                "prior",
                "pyro_smat.models.priors",
                {**_SHAPE, **_CATALOG, "guide_class": "the class of the guide, which knows its family of priors"},
                "pyro_smat.models.priors.prior:RoutingPrior",
            ),
            Kind(
                "guide",
                "pyro_smat.guides",
                {**_SHAPE, "prior": "the prior, whose log probabilities the posterior builds on"},
                "pyro_smat.guides.router:RoutingGuide",
            ),
            Kind(
                "encoder",
                "pyro_smat.encoders",
                {"feature_width": "f", "descriptors": "of the sources, (R, D)"},
                "pyro_smat.encoders.encoder:SupportEncoder",
                "evidence",
            ),
            Kind(
                "catalog",
                "pyro_smat.inference.training.catalogs",
                {
                    "source_names": "of the R sources",
                    "num_experts": "M",
                    "num_blocks": "L",
                    "limit": "the largest number of routings that the guide can hold",
                    "search": "training episodes and a model to try routings on (CatalogSearch)",
                },
                "pyro_smat.routing.catalog:Catalog",
                "k_hot",
            ),
            Kind(
                "episode_loss",
                "pyro_smat.inference.objective.losses",
                {},
                "pyro_smat.inference.objective.losses.episode_loss:EpisodeLoss",
                call=("distribution", "labels", "mask"),
            ),
            Kind(
                "decision_rule",
                "pyro_smat.inference.decision.rules",
                {"named_routings": "coefficients by name: source 0, prior mean, sources, routings of the catalog"},
                "pyro_smat.inference.decision.rules.rule:DecisionRule",
            ),
            Kind(
                "uncertainty_score",
                "pyro_smat.inference.decision.scores",
                {},
                "pyro_smat.inference.decision.scores.score:UncertaintyScore",
            ),
            Kind(
                "network",
                "pyro_smat.networks.backbones",
                {"saved_configuration": "what the network of a saved router was built from (keep_configuration)"},
            ),
            Kind(
                "layout",
                "pyro_smat.episodes.readers.layouts",
                {},
                call=("path", "split", "size", "channels"),
            ),
            Kind(
                "corruption",
                "pyro_smat.episodes.corruptions",
                {},
                "pyro_smat.episodes.corruptions.corruption:Corruption",
            ),
            Kind(
                "refinement",
                "pyro_smat.inference.deployment.refinement",
                {},
                "pyro_smat.inference.deployment.refinement.mode:RefinementMode",
            ),
            Kind(
                "baseline",
                "pyro_smat.inference.evaluation.baselines",
                {
                    "composed": "the sources as one composed library",
                    "subspaces": "of the sources' training features, by the name of the source",
                    "validation": "batches that baselines may tune on",
                    "source_of_route": "for every route of the pool, the source that knows it (-1 none)",
                },
                "pyro_smat.inference.evaluation.baselines.baseline:Baseline",
            ),
        )
    }
)
