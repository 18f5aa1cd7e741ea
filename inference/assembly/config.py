"""The configuration of a run: a TOML file, typed, frozen, and strict about names.

``load_config("config.toml", ["training.steps=500"])`` is where every command starts; an unknown key is an error that
names it and the nearest known one. Sections are those of the rooms; what a section may name (a prior, a guide, a
decision rule, ...) and with which options is asked of the registry.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pyro_smat.episodes.settings import EpisodeSettings
from pyro_smat.inference.assembly.evaluation_settings import EvaluationSettings
from pyro_smat.inference.decision.settings import DecisionSettings
from pyro_smat.inference.objective.settings import ObjectiveSettings
from pyro_smat.inference.training.settings import TrainingSettings
from pyro_smat.registry import Choice, Of, accepts, find, names
from pyro_smat.registry.entries import Factory, is_file


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


_DATA = ("glyphs", "folder", "csv", "none")


class Data(_Section):
    """Where images come from.

    ``kind`` "glyphs" needs no path; "folder" reads ``path/<class>``, ``path/<split>/<class>`` or
    ``path/<domain>/<class>``; "csv" a table with columns path, label and optionally domain, split; "none" is a router
    that was made in Python: commands need ``--data``; any other is a registered layout of a published data set
    (:mod:`pyro_smat.episodes.readers.layouts`). ``train``, ``validation`` and ``test`` name the splits; for
    folders a split may also be a path of its own. Where ``train`` and ``validation`` are not given, they are the splits
    of these names, and all images where the data has no splits, which is warned of; "" says that it has none.
    ``allow_outside``: files of a table may lie outside its folder.

    ``seen`` says what sources were trained on: the name of a source -> classes, or the name of a split. The router's
    episodes leave these classes out, or it learns to trust sources more than they deserve on new classes;
    ``keep_seen`` keeps them, with a warning.
    """

    kind: str = "glyphs"
    path: Path | None = None
    size: int = Field(default=32, ge=8, le=4096)
    channels: Literal[1, 3] = 1
    train: str | None = None
    validation: str | None = None
    test: str | None = "test"
    allow_outside: bool = False
    seen: dict[str, str | tuple[str, ...]] = Field(default_factory=dict)
    keep_seen: bool = False

    @model_validator(mode="after")
    def _needs_path(self) -> Data:
        if self.kind not in _DATA:
            find("layout", self.kind)
        if self.kind not in ("glyphs", "none") and self.path is None:
            raise ValueError(f"kind {self.kind!r} needs a path; add path = '...' to [data]")
        return self


class Sources(_Section):
    """The checkpoints; the first file is theta_pre, the fallback. None at all: the shipped glyph sources.

    ``network`` is what they are checkpoints of. ``blocks`` routes parts of the network apart: name -> regular
    expression of tensor names, first match wins. ``head`` are patterns of names ("fc.*") that are left out: those
    tensors stay the network's own and are not mixed. ``descriptors``: encoders read what every source does to probe
    images (:func:`pyro_smat.networks.descriptors.source_descriptors`) beside its evidence on the support.
    """

    network: Annotated[Choice, Of("network", "conv4")] = Field(default="conv4", validate_default=True)
    files: dict[str, Path] = Field(default_factory=dict)
    blocks: dict[str, str] = Field(default_factory=dict)
    head: tuple[str, ...] = ()
    descriptors: bool = True


class Experts(_Section):
    """See :class:`pyro_smat.networks.experts.ExpertBank`."""

    count: int = Field(default=4, ge=0)
    sparsity: float = Field(default=0.9, ge=0, lt=1)
    granularity: Literal["coordinate", "channel", "head", "block", "tensor"] = "coordinate"
    gates: Literal["hard_concrete", "top_k"] = "hard_concrete"
    budget: Literal["primal_dual", "projection"] = "projection"
    dual_learning_rate: float = Field(default=5e-2, ge=0)
    ramp: float = Field(default=0.5, ge=0, le=1)


class RunConfig(_Section):
    """Everything that a run depends on.

    ``guide_on_prior``: whether the posterior stands where the prior does before any evidence
    (:class:`~pyro_smat.guides.RoutingGuide`).
    """

    seed: int = 0
    data: Data = Data()
    episodes: EpisodeSettings = EpisodeSettings()
    sources: Sources = Field(default_factory=Sources)
    experts: Experts = Experts()
    model: Annotated[Choice, Of("model", "routed")] = Field(default="routed", validate_default=True)
    prior: Annotated[Choice, Of("prior", "uniform")] = Field(default="uniform", validate_default=True)
    guide: Annotated[Choice, Of("guide", "logistic_normal")] = Field(default="logistic_normal", validate_default=True)
    guide_on_prior: bool = True
    objective: ObjectiveSettings = Field(default_factory=ObjectiveSettings)
    training: TrainingSettings = TrainingSettings()
    decision: DecisionSettings = Field(default_factory=DecisionSettings)
    evaluation: EvaluationSettings = Field(default_factory=EvaluationSettings)

    @model_validator(mode="after")
    def _scales_a_catalog(self) -> RunConfig:
        factory = self.guide.factory
        if self.training.temperature_scaling and factory is not None and not accepts(factory, "catalog"):
            known = [name for name in names("guide") if accepts(find("guide", name), "catalog")]
            raise ValueError(
                f"training.temperature_scaling is for guides over a catalog ({', '.join(known)}); found guide "
                f"{self.guide.kind!r}"
            )
        return self

    def replaced(self, **sections: Any) -> RunConfig:
        """The config with other sections; a mapping changes some values of a section.

        Example:
            >>> RunConfig().replaced(training={"steps": 7}).training.steps
            7
        """
        values = {
            name: getattr(self, name).model_copy(update=dict(value)) if isinstance(value, Mapping) else value
            for name, value in sections.items()
        }
        return self.model_copy(update=values)


def load_config(path: str | Path | None = None, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a TOML file (None: all defaults) and apply ``key=value`` overrides with dotted keys and TOML values.

    Relative paths inside the file are relative to its folder. A ``kind = "file.py:Name"`` runs that file.

    Raises:
        ValueError: for a missing or malformed file, an unknown key (named, with the nearest known one), or a bad value.

    Example:
        >>> load_config(None, ["prior={kind='cost_aware', beta=2.0}"]).prior.beta
        2.0
    """
    values: dict[str, Any] = {}
    if path is not None:
        path = Path(path)
        try:
            values = tomllib.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise ValueError(f"{path}: cannot be read ({error.strerror}); expected a TOML config") from error
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}: not UTF-8 ({error}); expected a TOML config, which is UTF-8") from error
        except tomllib.TOMLDecodeError as error:
            raise ValueError(f"{path}: not valid TOML ({error})") from error
        except (RecursionError, ValueError) as error:
            raise ValueError(f"{path}: not usable TOML ({error})") from error
        _resolve_paths(values, path.parent)
    for override in overrides:
        _apply(values, override)
    try:
        return build_config(values, run_files=True)
    except ValueError as error:
        raise ValueError(str(error) if path is None else f"{path}: {error}") from error


def build_config(
    values: Mapping[str, Any], *, own: Mapping[str, Factory] | None = None, run_files: bool = False
) -> RunConfig:
    """A config from nested values; errors as in :func:`load_config`.

    Args:
        values: as TOML or JSON has them.
        own: kind -> class of the caller's own, for what ``values`` name as "file.py:Name".
        run_files: whether such names may be run. Without it, and without a class, they stay names.
    """
    try:
        return RunConfig.model_validate(values, context={"own": own or {}, "run_files": run_files})
    except ValidationError as error:
        raise ValueError("config: " + "; ".join(_explain(problem) for problem in error.errors())) from error


def _explain(problem: Mapping[str, Any]) -> str:
    path = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        known = _keys_beside(problem["loc"])
        near = difflib.get_close_matches(str(problem["loc"][-1]), known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}"
        return f"unknown key {path!r}; {hint}"
    if problem["type"] == "choice":
        return f"{path}: {problem['msg']}"
    if not path:  # of sections together
        return str(problem["msg"]).removeprefix("Value error, ")
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
    except (ValueError, RecursionError):
        value = text.strip()  # a bare word is a string
    *sections, last = key.strip().split(".")
    for section in sections:
        inner = values.setdefault(section, {})
        if isinstance(inner, str):  # prior = "uniform" is short for prior = {kind = "uniform"}
            inner = values[section] = {"kind": inner}
        values = inner
        if not isinstance(values, dict):
            raise ValueError(f"override {override!r}: {section!r} is a value, not a section")
    values[last] = value


def _resolve_paths(values: dict[str, Any], folder: Path) -> None:
    data, sources = values.get("data"), values.get("sources")
    if isinstance(data, dict) and isinstance(data.get("path"), str):
        data["path"] = str(folder / data["path"])
    if isinstance(sources, dict) and isinstance(sources.get("files"), dict):
        sources["files"] = {k: str(folder / v) if isinstance(v, str) else v for k, v in sources["files"].items()}
    _resolve_files(values, folder)


def _resolve_files(values: Any, folder: Path) -> Any:
    """``kind = "file.py:Name"``, or the name alone, relative to the folder of the config; at any depth."""
    if isinstance(values, dict):
        for key, value in values.items():
            values[key] = _resolve_files(value, folder)
        return values
    if isinstance(values, list):
        return [_resolve_files(value, folder) for value in values]
    return str(folder / values) if isinstance(values, str) and is_file(values) else values


__all__ = ["Choice", "Data", "Experts", "RunConfig", "Sources", "build_config", "load_config"]
