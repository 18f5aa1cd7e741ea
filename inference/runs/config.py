"""The configuration of a run: a TOML file, typed, frozen, and strict about names.

``load_config("config.toml", ["training.steps=500"])`` is where every command starts; an unknown key is an error that
names it and the nearest known one.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pyro_smat.episodes.corruption import SupportCorruption
from pyro_smat.inference.decision.settings import DecisionSettings
from pyro_smat.inference.evaluation.settings import EvaluationSettings

IntRange = int | tuple[int, int]
Family = Literal["logistic_normal", "catalog", "hierarchical", "concrete", "dirichlet", "point"]
PriorKind = Literal[
    "uniform", "cost_aware", "logistic_normal", "dirichlet", "concrete", "simplex_cost", "hierarchical", "mixture"
]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Corruption(_Section):
    """What is wrong with supports, see :class:`pyro_smat.episodes.corruption.SupportCorruption`."""

    label_noise: float | tuple[float, float] = 0.0
    label_noise_probability: float = 1.0
    confounding: float = 0.0

    def build(self) -> SupportCorruption:
        return SupportCorruption(self.label_noise, self.label_noise_probability, self.confounding)


class Data(_Section):
    """Where images come from.

    ``kind`` "glyphs" needs no path; "folder" reads ``path/<class>``, ``path/<split>/<class>`` or
    ``path/<domain>/<class>``; "csv" a table with columns path, label and optionally domain, split. ``train``,
    ``validation`` and ``test`` name the splits; for folders a split may also be a path of its own.
    """

    kind: Literal["glyphs", "folder", "csv"] = "glyphs"
    path: Path | None = None
    size: int = Field(default=32, ge=8)
    channels: Literal[1, 3] = 1
    train: str | None = "train"
    validation: str | None = "validation"
    test: str | None = "test"

    @model_validator(mode="after")
    def _needs_path(self) -> Data:
        if self.kind != "glyphs" and self.path is None:
            raise ValueError(f"kind {self.kind!r} needs a path; add path = '...' to [data]")
        return self


class Episodes(_Section):
    """Shape of the episodes; numbers or ranges [low, high]."""

    way: IntRange = 5
    shot: IntRange = 5
    query: IntRange = 10
    attributes: tuple[str, ...] | None = None
    domains: tuple[str, ...] | None = None
    imbalance: float = 0.0
    skip_small_classes: bool = False
    corruption: Corruption = Corruption()


class Sources(_Section):
    """The checkpoints; the first file is theta_pre, the fallback. None at all: the shipped glyph sources.

    ``blocks`` routes parts of the network apart: name -> regular expression of tensor names, first match wins.
    ``head`` are patterns of names ("fc.*") that are left out: those tensors stay the network's own and are not mixed.
    """

    network: str = "conv4"
    options: dict[str, Any] = Field(default_factory=dict)
    files: dict[str, Path] = Field(default_factory=dict)
    blocks: dict[str, str] = Field(default_factory=dict)
    head: tuple[str, ...] = ()


class Experts(_Section):
    """See :class:`pyro_smat.networks.experts.ExpertBank`; ``masks`` says whether vectorised particles share a sample of the
    gates, ``orthogonality`` weighs the penalty on experts that overlap."""

    count: int = Field(default=4, ge=0)
    sparsity: float = Field(default=0.9, ge=0, lt=1)
    granularity: Literal["coordinate", "channel", "head", "block", "tensor"] = "coordinate"
    gates: Literal["hard_concrete", "top_k"] = "hard_concrete"
    budget: Literal["primal_dual", "projection"] = "projection"
    dual_learning_rate: float = Field(default=5e-2, ge=0)
    ramp: float = Field(default=0.5, ge=0, le=1)
    masks: Literal["shared", "separate"] = "shared"
    orthogonality: float = Field(default=0.0, ge=0)


_COST = ("beta", "target_cost", "costs", "learn", "hyperprior")
_USED_BY_PRIOR: dict[str, tuple[str, ...]] = {
    "uniform": ("scale", "concentration"),  # of the guide's own kind
    "cost_aware": (*_COST, "scale"),
    "logistic_normal": ("scale",),
    "dirichlet": ("concentration",),
    "concrete": ("temperature",),
    "simplex_cost": _COST,
    "hierarchical": ("learn",),
    "mixture": ("components", "weights", "learn", "hyperprior", "kl"),
}


class Prior(_Section):
    """What is believed about the routing; which kind fits which guide is in docs/families.md.

    "uniform" treats all routings alike, "cost_aware" takes log probability away by beta for every unit of cost; both
    exist for every guide. "logistic_normal", "dirichlet", "concrete" and "simplex_cost" are for guides on the simplex,
    "hierarchical" (first the set of sources, then the expert) for those over a catalog; "mixture" has components.

    ``costs`` prices opening each source and expert (default: 0 for the fallback, 1 for
    every other); ``target_cost`` solves for beta; ``learn`` makes
    beta, the mixture's weights or the hierarchy's logits parameters; ``hyperprior`` is then (shape, rate) of a gamma
    density of beta, or the concentrations of a Dirichlet density of the weights. ``scale`` is the deviation of
    logistic-normal logits, ``concentration`` that of a Dirichlet, ``temperature`` that of a Concrete, ``kl``
    what a mixture on the simplex does for its KL.
    """

    kind: PriorKind = "uniform"
    beta: float = Field(default=1.0, ge=0)
    target_cost: float | None = None
    costs: tuple[float, ...] | None = None
    scale: float = Field(default=2.0, gt=0)
    concentration: float = Field(default=1.0, gt=0)
    temperature: float = Field(default=1.0, gt=0)
    learn: bool = False
    hyperprior: tuple[float, ...] | None = None
    components: tuple[Prior, ...] = ()
    weights: tuple[float, ...] | None = None
    kl: Literal["sampled", "bound"] = "sampled"

    @model_validator(mode="after")
    def _consistent(self) -> Prior:
        if (self.kind == "mixture") != bool(self.components):
            raise ValueError(f"kind is {self.kind!r} with {len(self.components)} components; only a mixture has some")
        used = {"kind", *_USED_BY_PRIOR[self.kind]}
        idle = [k for k, f in type(self).model_fields.items() if k not in used and getattr(self, k) != f.default]
        if idle:
            raise ValueError(f"kind {self.kind!r} does not use {', '.join(idle)}; it uses {sorted(used - {'kind'})}")
        return self


class CatalogSearch(_Section):
    """How the catalog is built before training: see :func:`pyro_smat.inference.training.catalog_search.search_catalog`.

    "k_hot" is every uniform mixture of up to ``max_sources``; the others search ``size`` routings on ``episodes``
    training episodes: mixtures of sources, each of them with every expert (at least one mixture).
    """

    method: Literal["k_hot", "greedy", "beam", "random"] = "k_hot"
    max_sources: int = Field(default=1, ge=1)
    size: int = Field(default=32, ge=1)
    episodes: int = Field(default=64, ge=1)
    beam_width: int = Field(default=4, ge=1)


class Guide(_Section):
    """The family of the posterior and its network.

    ``descriptors``: the network reads what every source does to probe images
    (:func:`pyro_smat.networks.descriptors.source_descriptors`) beside its evidence on the support.
    ``covariance`` and ``rank`` are for "logistic_normal"; ``temperature``, ``final_temperature``, ``per_episode`` and
    ``straight_through`` for "concrete"; ``concentration`` for "dirichlet"; ``estimator``, ``relaxation`` (its
    temperature), ``catalog`` and ``calibrate`` (temperature scaling on validation episodes) for "catalog" and
    "hierarchical".
    """

    family: Family = "logistic_normal"
    encoder: Literal["evidence", "deep_sets", "prototype_moments", "prototype_attention"] = "evidence"
    hidden: int = Field(default=64, ge=1)
    descriptors: bool = True
    covariance: Literal["diagonal", "low_rank", "full"] = "diagonal"
    rank: int = Field(default=2, ge=1)
    temperature: float = Field(default=1.0, gt=0)
    final_temperature: float = Field(default=0.3, gt=0)
    per_episode: bool = True
    straight_through: bool = False
    concentration: float = Field(default=2.0, gt=0)
    estimator: Literal["enumerate", "gumbel_softmax", "straight_through", "score_function"] = "enumerate"
    relaxation: float = Field(default=0.5, gt=0)
    catalog: CatalogSearch = CatalogSearch()
    calibrate: bool = False

    @model_validator(mode="after")
    def _of_family(self) -> Guide:
        if self.calibrate and self.family not in ("catalog", "hierarchical"):
            raise ValueError(f"calibrate is for families 'catalog' and 'hierarchical'; found family {self.family!r}")
        if self.straight_through and self.family != "concrete":
            raise ValueError(
                f"straight_through is for family 'concrete'; found {self.family!r} (a catalog has estimator = "
                "'straight_through')"
            )
        return self


class Custom(_Section):
    """Classes of your own, "file.py:Class", instead of RoutedModel and of the guide of the family."""

    model: str | None = None
    guide: str | None = None


class Head(_Section):
    metric: Literal["cosine", "euclidean"] = "cosine"
    scale: float = Field(default=10.0, gt=0)


class Distillation(_Section):
    """Weights of the optional terms; the teacher tries the routings of the guide's catalog (without one: all
    mixtures of up to ``max_sources`` sources) on the support, or, as an oracle, on the queries."""

    routing: float = Field(default=0.0, ge=0)
    prediction: float = Field(default=0.0, ge=0)
    temperature: float = Field(default=1.0, gt=0)
    on: Literal["support", "queries"] = "support"
    max_sources: int = Field(default=1, ge=1)


class Objective(_Section):
    """CVaR_ELBO: see :class:`pyro_smat.inference.CVaR_ELBO`."""

    rho: float = 0.5
    tail_weight: float = Field(default=0.5, ge=0, le=1)
    kl_weight: float = Field(default=1.0, ge=0)
    entropy_weight: float | None = Field(default=None, ge=0)
    episode_loss: Literal["nll", "mean_nll", "clipped_nll", "expected_error", "brier", "predictive_nll"] = "nll"
    reference: Literal["none", "best_source", "fallback"] = "best_source"
    threshold: Literal["batch", "queue", "learned"] = "batch"
    baseline: Literal["none", "leave_one_out", "decaying_average"] = "none"
    num_particles: int = Field(default=1, ge=1)
    distillation: Distillation = Distillation()

    @model_validator(mode="after")
    def _rho(self) -> Objective:
        if not 0 < self.rho <= 1:
            raise ValueError(f"rho is {self.rho}; expected a tail fraction in (0, 1]")
        return self


class Training(_Section):
    """See :class:`pyro_smat.inference.TrainingSettings`."""

    steps: int = Field(default=300, ge=0)
    episodes: int = Field(default=16, ge=1)
    learning_rate: float = Field(default=3e-3, gt=0)
    delta_learning_rate: float = Field(default=1e-3, gt=0)
    gate_learning_rate: float = Field(default=5e-2, gt=0)
    weight_decay: float = Field(default=1e-2, ge=0)
    clip_norm: float = Field(default=1.0, gt=0)
    warmup: int = Field(default=20, ge=0)
    kl_warmup: int = Field(default=0, ge=0)
    kl_cycles: int = Field(default=1, ge=1)
    validate_every: int = Field(default=100, ge=0)
    checkpoint_every: int = Field(default=100, ge=0)
    validation_episodes: int = Field(default=64, ge=1)
    precision: Literal["auto", "float32", "bfloat16"] = "auto"


class RunConfig(_Section):
    """Everything that a run depends on."""

    seed: int = 0
    data: Data = Data()
    episodes: Episodes = Episodes()
    sources: Sources = Sources()
    experts: Experts = Experts()
    prior: Prior = Prior()
    guide: Guide = Guide()
    head: Head = Head()
    objective: Objective = Objective()
    training: Training = Training()
    decision: DecisionSettings = Field(default_factory=DecisionSettings)
    evaluation: EvaluationSettings = Field(default_factory=EvaluationSettings)
    custom: Custom = Custom()


def load_config(path: str | Path | None = None, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a TOML file (None: all defaults) and apply ``key=value`` overrides with dotted keys and TOML values.

    Relative paths inside the file are relative to its folder.

    Raises:
        ValueError: for a missing or malformed file, an unknown key (named, with the nearest known one), or a bad value.
    """
    values: dict[str, Any] = {}
    if path is not None:
        path = Path(path)
        try:
            values = tomllib.loads(path.read_text())
        except OSError as error:
            raise ValueError(f"{path}: cannot be read ({error.strerror}); expected a TOML config") from error
        except tomllib.TOMLDecodeError as error:
            raise ValueError(f"{path}: not valid TOML ({error})") from error
        _resolve_paths(values, path.parent)
    for override in overrides:
        _apply(values, override)
    return build_config(values)


def build_config(values: Mapping[str, Any]) -> RunConfig:
    """A config from nested values; errors as in :func:`load_config`."""
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        raise ValueError("config: " + "; ".join(_explain(problem) for problem in error.errors())) from error


def _explain(problem: Mapping[str, Any]) -> str:
    path = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        known = _keys_beside(problem["loc"])
        near = difflib.get_close_matches(str(problem["loc"][-1]), known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}"
        return f"unknown key {path!r}; {hint}"
    return f"{path}: {problem['msg'].removeprefix('Value error, ')} (found {problem['input']!r})"


def _keys_beside(location: Sequence[Any]) -> list[str]:
    model: Any = RunConfig
    for part in location[:-1]:
        if isinstance(part, int):  # a place in a tuple of sections: its annotation has led to the section already
            continue
        annotation = model.model_fields[part].annotation
        candidates = [annotation, *get_args(annotation)]
        model = next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), None)
        if model is None:
            return []
    return sorted(model.model_fields)


def _apply(values: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key.strip():
        raise ValueError(f"override {override!r} is not of the form key=value, e.g. training.steps=500")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()  # a bare word is a string
    *sections, last = key.strip().split(".")
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise ValueError(f"override {override!r}: {section!r} is a value, not a section")
    values[last] = value


def _resolve_paths(values: dict[str, Any], folder: Path) -> None:
    data, sources, custom = values.get("data"), values.get("sources"), values.get("custom")
    if isinstance(data, dict) and isinstance(data.get("path"), str):
        data["path"] = str(folder / data["path"])
    if isinstance(sources, dict) and isinstance(sources.get("files"), dict):
        sources["files"] = {k: str(folder / v) if isinstance(v, str) else v for k, v in sources["files"].items()}
    if isinstance(custom, dict):
        values["custom"] = {k: str(folder / v) if isinstance(v, str) else v for k, v in custom.items()}
