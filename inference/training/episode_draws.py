"""EpisodeDraws: what is drawn for an episode depends on its number alone, not on the batch that it is in.

Sampling a batch from one generator gives episode 7 other values when it is the third of eight than when it is the first
of two. Inside this context every episode has a generator of its own, so a run is the same however its episodes are
spread over processes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from math import prod
from typing import Any

import numpy as np
import torch
from pyro.distributions.torch_distribution import ExpandedDistribution
from pyro.poutine.indep_messenger import CondIndepStackFrame
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pyro_smat.distributed import World
from pyro_smat.episodes import EpisodeBatch
from pyro_smat.episodes.sampler import EpisodeSampler

WITHOUT_GENERATOR = {  # their namesakes that take one
    torch.ops.aten.rand.default: torch.ops.aten.rand.generator,
    torch.ops.aten.randn.default: torch.ops.aten.randn.generator,
    torch.ops.aten.randint.default: torch.ops.aten.randint.generator,
    torch.ops.aten.randint.low: torch.ops.aten.randint.low_generator,
}


def numbered_seed(seed: int, *numbers: int) -> int:
    """A seed for what has these numbers in a run, in [0, 2^63)."""
    return int(np.random.SeedSequence(seed, spawn_key=numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))


@contextmanager
def numbered_episodes(
    sampler: EpisodeSampler, numbers: Sequence[int], seed: int, step: int, episode_plate: str = "episodes"
) -> Iterator[EpisodeBatch]:
    """Episodes by number, inside :class:`EpisodeDraws`; what belongs to no episode is drawn by the number of the step.

    The global generators are set inside the block and restored after it.

    Args:
        sampler: has ``at(numbers)``.
        numbers: of the episodes.
        seed: of the run.
        step: what all processes draw alike (gates of experts, sites outside the plate) depends on it.
        episode_plate: name of the plate over the episodes.
    """
    with torch.random.fork_rng():
        torch.manual_seed(numbered_seed(seed, 0, step))
        with EpisodeDraws(numbered_seed(seed, 1), numbers, episode_plate):
            yield sampler.at(numbers)


def check_sharing(world: World, episodes: int, sampler: EpisodeSampler, numbered: bool) -> None:
    """Refuse a batch that cannot be shared out.

    Raises:
        ValueError: for fewer episodes than processes, or a sampler that cannot number episodes.
    """
    if (numbered or world.size > 1) and not hasattr(sampler, "at"):
        raise ValueError(
            f"{type(sampler).__name__} has no method at(numbers); expected one, as EpisodeSampler has it, to draw "
            "episodes by number: several processes and training.numbered need it"
        )
    if world.size > episodes:
        raise ValueError(
            f"training.episodes is {episodes} and there are {world.size} processes; expected at least one episode "
            "a step for each: raise episodes, or start fewer processes"
        )


class EpisodeDraws(Messenger):
    """Draws at sample sites inside the episode plate, episode by episode, each from the generator of its number.

    Sites outside the plate, and whatever a program draws without ``pyro.sample``, come from the global generator.

    Args:
        seed: of the run.
        numbers: of the episodes of the batch, in its order.
        episode_plate: name of the plate over them.

    Raises:
        ValueError: at a site whose draws cannot be told apart by episode; names it.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def guide(episodes):
        ...     with pyro.plate("episodes", episodes, dim=-2):
        ...         return pyro.sample("z", dist.Normal(torch.zeros(episodes, 1), 1.0))
        >>> with EpisodeDraws(0, [5, 6, 7]):
        ...     three = guide(3)
        >>> with EpisodeDraws(0, [7]):
        ...     one = guide(1)
        >>> torch.equal(three[2], one[0])
        True
    """

    def __init__(self, seed: int, numbers: Sequence[int], episode_plate: str = "episodes") -> None:
        super().__init__()
        self.episode_plate = episode_plate
        self._seeds = [numbered_seed(seed, number) for number in numbers]
        self._generators: dict[torch.device, list[torch.Generator]] = {}

    def generators(self, device: torch.device) -> list[torch.Generator]:
        """One for each episode, where they are on this device."""
        if device not in self._generators:
            self._generators[device] = [torch.Generator(device).manual_seed(seed) for seed in self._seeds]
        return self._generators[device]

    def _pyro_sample(self, msg: Any) -> None:
        frames: Sequence[CondIndepStackFrame] = msg["cond_indep_stack"]
        plate = next((f for f in frames if f.name == self.episode_plate and f.vectorized), None)
        known = msg["done"] or msg["is_observed"] or msg["value"] is not None
        if plate is None or known or site_is_subsample(msg):
            return
        batch_shape, dim = msg["fn"].batch_shape, plate.dim
        if len(batch_shape) < -dim or batch_shape[dim] != len(self._seeds):
            raise ValueError(
                f"site {msg['name']!r} has batch shape {tuple(batch_shape)}; expected {len(self._seeds)} episodes at "
                f"dim {dim}: the plate {self.episode_plate!r} has to be over the episodes that are drawn by number"
            )
        if isinstance(msg["fn"], ExpandedDistribution) and prod(batch_shape) > len(self._seeds):
            raise ValueError(
                f"site {msg['name']!r} draws from an expanded {type(msg['fn'].base_dist).__name__}, whose draws are "
                "not in the order of the episodes; expected a distribution that has the episodes among its parameters"
            )
        try:
            with _ByEpisode(self.generators, batch_shape, dim):
                msg["value"] = msg["fn"](*msg["args"], **msg["kwargs"])
        except _Mixed as error:
            raise ValueError(
                f"site {msg['name']!r}: {type(msg['fn']).__name__} draws by {error}, which mixes the episodes of batch "
                f"shape {tuple(batch_shape)}; expected draws whose leading dims are the batch's"
            ) from error
        msg["done"] = True


class _Mixed(Exception):
    """A random operation whose entries cannot be told apart by episode."""


class _ByEpisode(TorchDispatchMode):
    """Runs every random operation once for each episode, on its part of the arguments."""

    def __init__(
        self, generators: Callable[[torch.device], list[torch.Generator]], batch_shape: torch.Size, dim: int
    ) -> None:
        super().__init__()
        self.generators, self.batch_shape = generators, batch_shape
        self.dim = len(batch_shape) + dim

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if torch.Tag.nondeterministic_seeded not in func.tags:
            return func(*args, **kwargs)
        if func._schema.name.endswith("_like"):  # rand_like and randn_like
            func = getattr(torch.ops.aten, func._schema.name.removeprefix("aten::").removesuffix("_like")).default
            like, args = args[0], (list(args[0].shape),)
            kwargs = {"dtype": kwargs.get("dtype") or like.dtype, "device": kwargs.get("device") or like.device}
        func = WITHOUT_GENERATOR.get(func, func)
        names = [argument.name for argument in func._schema.arguments]
        if "generator" not in names:
            raise _Mixed(func._schema.name)
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        where = next((v.device for v in given.values() if isinstance(v, Tensor)), given.get("device"))
        generators = self.generators(torch.device("cpu") if where is None else torch.device(where))
        parts = []
        for episode, generator in enumerate(generators):
            own = {name: self._part(name, value, episode, func) for name, value in given.items()}
            parts.append(func(**{**own, "generator": generator}))
        whole = self._joined(parts, func)
        return args[0].copy_(whole) if func._schema.name.endswith("_") else whole

    def _part(self, name: str, value: Any, episode: int, func: Any) -> Any:
        """An episode's part of an argument: a slice of a tensor, or the size of such a slice."""
        if isinstance(value, Tensor):
            if value.ndim == 0:
                return value
            shape, batch = value.shape, self.batch_shape
            if shape[: len(batch)] == batch:
                part = value.narrow(self.dim, episode, 1)
            elif shape[0] == prod(batch):
                part = value.unflatten(0, batch).narrow(self.dim, episode, 1).flatten(0, len(batch) - 1)
            else:
                raise _Mixed(f"{func._schema.name} of shape {tuple(shape)}")
            return part.clone()  # in-place operations must not write through it twice
        if name == "size":
            if tuple(value[: len(self.batch_shape)]) != tuple(self.batch_shape):
                raise _Mixed(f"{func._schema.name} of shape {tuple(value)}")
            return [*value[: self.dim], 1, *value[self.dim + 1 :]]
        return value

    def _joined(self, parts: list[Tensor], func: Any) -> Tensor:
        batch = len(self.batch_shape)
        one = (*self.batch_shape[: self.dim], 1, *self.batch_shape[self.dim + 1 :])
        if parts[0].shape[:batch] == torch.Size(one):
            return torch.cat(parts, self.dim)
        if parts[0].shape[0] == prod(one):
            return torch.cat([part.unflatten(0, one) for part in parts], self.dim).flatten(0, batch - 1)
        raise _Mixed(f"{func._schema.name} to shape {tuple(parts[0].shape)}")
