"""EpisodeSettings: the section of a config that shapes episodes; it makes the sampler of any pool."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, field_validator

from pyro_smat.episodes.corruptions.corruption import CorruptionLike
from pyro_smat.episodes.index import ClassNames, checked_span
from pyro_smat.episodes.pool import ImagePool
from pyro_smat.episodes.sampler import EpisodeSampler
from pyro_smat.registry import Choice, Of, build

_LEAST = {"way": 2, "shot": 1, "query": 1}


class EpisodeSettings(BaseModel):
    """Shape of the episodes and what goes wrong with them; see :class:`EpisodeSampler` for every field.

    Numbers may be inclusive ranges ``[low, high]``; corruptions are names or tables.

    Raises:
        ValueError: (as pydantic's ValidationError) for a value out of its range, or an unknown name.

    Example:
        >>> settings = EpisodeSettings(way=[2, 5], corruptions=[{"kind": "label_noise", "fraction": 0.4}])
        >>> settings.way, settings.corruptions[0].fraction
        ((2, 5), 0.4)
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    way: int | tuple[int, int] = 5
    shot: int | tuple[int, int] = 5
    query: int | tuple[int, int] = 10
    attributes: tuple[str, ...] | None = None
    domains: tuple[str, ...] | None = None
    skip_small_classes: bool = False
    corruptions: tuple[Annotated[Choice, Of("corruption")], ...] = ()

    @field_validator("way", "shot", "query", mode="before")
    @classmethod
    def _in_range(cls, value: Any, info: Any) -> Any:
        checked_span(info.field_name, value, _LEAST[info.field_name])
        return value

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
        way, shot, query = (checked_span(name, getattr(self, name), least)[1] for name, least in _LEAST.items())
        return way * (shot + query)

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
        return EpisodeSampler(
            pool,
            self.way,
            self.shot,
            self.query,
            attributes=[a for a in self.attributes or () if a in pool.attributes] or None,
            domains=self.domains if self.domains and set(self.domains) <= set(pool.domain_names) else None,
            corruptions=self.corruptions if corruptions is None else corruptions,
            exclude_classes=exclude_classes,
            seed=seed,
            skip_small_classes=self.skip_small_classes,
        )
