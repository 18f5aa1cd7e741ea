"""EpisodeSettings: the section of a config that shapes episodes; it makes the sampler of any pool."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, field_validator, model_validator

from pyro_smat.episodes.corruptions.corruption import CorruptionLike
from pyro_smat.episodes.index import ClassNames, checked_span
from pyro_smat.episodes.meta_dataset import MOST_QUERIES, MOST_SUPPORT, WAY, MetaDatasetSampler
from pyro_smat.episodes.pool import ImagePool
from pyro_smat.episodes.sampler import EpisodeSampler
from pyro_smat.registry import Choice, Of, build

_LEAST = {"way": 2, "shot": 1, "query": 1}


class EpisodeSettings(BaseModel):
    """Shape of the episodes and what goes wrong with them; see :class:`EpisodeSampler` for every field.

    Numbers may be inclusive ranges ``[low, high]``; corruptions are names or tables. ``kind`` "meta_dataset" draws
    shots and queries, and the way from its range (5 to 50), as Meta-Dataset does, all classes of an episode of one
    value of the attribute ``within``, where that is given: see :class:`MetaDatasetSampler`.

    Raises:
        ValueError: (as pydantic's ValidationError) for a value out of its range, or an unknown name.

    Example:
        >>> settings = EpisodeSettings(way=[2, 5], corruptions=[{"kind": "label_noise", "fraction": 0.4}])
        >>> settings.way, settings.corruptions[0].fraction
        ((2, 5), 0.4)
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["uniform", "meta_dataset"] = "uniform"
    way: int | tuple[int, int] = 5
    shot: int | tuple[int, int] = 5
    query: int | tuple[int, int] = 10
    attributes: tuple[str, ...] | None = None
    domains: tuple[str, ...] | None = None
    skip_small_classes: bool = False
    within: str | None = None
    corruptions: tuple[Annotated[Choice, Of("corruption")], ...] = ()

    @field_validator("way", "shot", "query", mode="before")
    @classmethod
    def _in_range(cls, value: Any, info: Any) -> Any:
        checked_span(info.field_name, value, _LEAST[info.field_name])
        return value

    @model_validator(mode="before")
    @classmethod
    def _of_its_kind(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        if values.get("kind") != "meta_dataset":
            if values.get("within") is not None:
                raise ValueError("within is for kind 'meta_dataset'; expected that kind, or no within")
            return values
        drawn = [k for k in ("shot", "query") if values.get(k) not in (None, cls.model_fields[k].default)]
        if drawn:
            raise ValueError(f"kind 'meta_dataset' draws {' and '.join(drawn)} itself; expected none to be given")
        return {"way": WAY, **values}

    @field_validator("corruptions", mode="after")
    @classmethod
    def _can_be_built(cls, choices: tuple[Choice, ...]) -> tuple[Choice, ...]:
        for choice in choices:
            if choice.factory is not None:
                build(choice)  # its constructor refuses values out of range
        return choices

    @property
    def most_images(self) -> int:
        """The most images that an episode can have."""
        if self.kind == "meta_dataset":
            return MOST_SUPPORT + checked_span("way", self.way, 2)[1] * MOST_QUERIES
        way, shot, query = (checked_span(name, getattr(self, name), least)[1] for name, least in _LEAST.items())
        return way * (shot + query)

    def uniform(self, **shape: int) -> EpisodeSettings:
        """Episodes with so many classes, shots and queries, whatever the kind; of the smallest way, if none is given.

        Args:
            shape: way, shot, query; others stay as they are where the kind has them.
        """
        smallest = {"way": checked_span("way", self.way, 2)[0]} if self.kind == "meta_dataset" else {}
        return self.model_copy(update={"kind": "uniform", "within": None, **smallest, **shape})

    def __str__(self) -> str:
        if self.kind == "meta_dataset":
            return f"{self.way}, as Meta-Dataset draws them"
        return f"{self.way}, {self.shot}, {self.query}"

    def sampler(
        self,
        pool: ImagePool,
        *,
        seed: int,
        corruptions: Sequence[CorruptionLike] | None = None,
        exclude_classes: ClassNames | None = None,
    ) -> EpisodeSampler:
        """A sampler of a pool.

        Attributes and domains that the pool lacks are left out; where it has none of them, all of its own are used.

        Args:
            pool: the images.
            seed: of the sampler.
            corruptions: in place of the config's.
            exclude_classes: see :class:`EpisodeSampler`.

        Raises:
            ValueError: when the pool cannot give such episodes.
        """
        options: dict[str, Any] = {
            "attributes": [a for a in self.attributes or () if a in pool.attributes] or None,
            "domains": self.domains if self.domains and set(self.domains) <= set(pool.domain_names) else None,
            "corruptions": self.corruptions if corruptions is None else corruptions,
            "exclude_classes": exclude_classes,
            "seed": seed,
            "skip_small_classes": self.skip_small_classes,
        }
        if self.kind == "meta_dataset":
            return MetaDatasetSampler(pool, checked_span("way", self.way, 2), within=self.within, **options)
        return EpisodeSampler(pool, self.way, self.shot, self.query, **options)
