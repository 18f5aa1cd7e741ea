"""Adapting: labelled supports in, routed tasks out; one, or a stream of them in batches.

What :class:`~pyro_smat.inference.deployment.classifier.RoutedClassifier` does once it is there. Supports are read and
checked here, and go through sources and guide together with others of their shape.
"""

from __future__ import annotations

import warnings
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pyro_smat.episodes import EpisodeBatch
from pyro_smat.inference.assembly.defaults import own_defaults
from pyro_smat.inference.assembly.router import Router
from pyro_smat.inference.decision.choosing import initial_deployment
from pyro_smat.inference.decision.deployment import Deployment
from pyro_smat.inference.decision.rules import Map
from pyro_smat.inference.deployment.adapted_task import AdaptedTask
from pyro_smat.inference.deployment.answering import TaskAnswer, answers_of
from pyro_smat.inference.deployment.broken_features import refuse_broken_features
from pyro_smat.inference.deployment.inputs import ImageForm, read_images
from pyro_smat.inference.deployment.network_check import unfit_images
from pyro_smat.inference.deployment.refinement import RefinementMode, parse_refinement
from pyro_smat.inference.deployment.refinement.cache import CacheInfo, TaskCache, support_digest
from pyro_smat.inference.deployment.repeated_shots import without_repeats
from pyro_smat.inference.deployment.routed_tasks import RoutedTasks
from pyro_smat.inference.deployment.shapes import by_shape, unpadded
from pyro_smat.inference.deployment.support_labels import read_labels
from pyro_smat.inference.deployment.supports import Support, as_episode, as_pair
from pyro_smat.networks.basis import Basis
from pyro_smat.networks.features import SourceFeatures
from pyro_smat.networks.network_features import NetworkFeatures
from pyro_smat.networks.preprocessing import preprocessing_of

CACHED_TASKS = 8


class TaskRouter:
    """A router at work; any number of threads may use it.

    Args:
        router: model and guide.
        deployment: how it decides and when it abstains; default: the rule of the config, never abstaining.
        cache_size: adapted tasks to keep, the ones used last; 0 for none. A task keeps the networks it has composed.
    """

    @own_defaults()
    def __init__(self, router: Router, deployment: Deployment | None = None, *, cache_size: int = CACHED_TASKS) -> None:
        self.router = router
        self.deployment = initial_deployment(router.config.decision) if deployment is None else deployment
        self._tasks: TaskCache[AdaptedTask] = TaskCache(cache_size)
        if getattr(router.model.network, "by_batch", False):
            warnings.warn(
                "the network normalises by the images that it is given together (batch normalisation without running "
                "statistics): answers to a query depend on which others it is asked with; ask those together that "
                "belong together, or give these layers running statistics",
                UserWarning,
                stacklevel=4,
            )
        router.model.eval()
        router.guide.eval()
        self.rule = self.deployment.decider(router.model, router.catalog)
        self.fallback = self.deployment.fallback_rule(router.model, router.catalog)
        samples = self.deployment.gate_samples
        generator = torch.Generator(device=router.device).manual_seed(router.config.seed)
        with torch.no_grad():  # (m, C, d): one basis, or one for every sample of the experts' gates
            self.bases = router.model.basis(samples, generator) if samples else router.model.basis().unsqueeze(0)

    @property
    def source_names(self) -> tuple[str, ...]:
        return self.router.library.names

    @property
    def image_form(self) -> ImageForm:
        """What the router's images are like."""
        data, steps = self.router.config.data, preprocessing_of(self.router.network)
        normalises = any(step.mean is not None or step.std is not None for step in steps)
        return ImageForm(data.channels, data.size, self.router.pixels, normalises)

    @property
    @torch.no_grad()
    def deployed_basis(self) -> Basis:
        """The basis ``(C, d)`` with the deployed masks."""
        return self.router.model.basis() if self.deployment.gate_samples else self.bases[0]

    @own_defaults()
    def adapt(
        self,
        images: Any,
        labels: Any,
        *,
        seed: int = 0,
        refine: RefinementMode | str | Mapping[str, Any] | None = None,
    ) -> AdaptedTask:
        """Route a labelled support set, and refine the routing on it.

        A refinement fits the support better than the router does, its wrong labels included. It pays where the router
        is far from the best routing and the support is large and clean; with a handful of noisy shots the router,
        which has learned from many tasks what to believe, is the safer one. Try it on held-out episodes first.

        Args:
            images: S of them in any form of :func:`~pyro_smat.inference.deployment.inputs.read_images`: a tensor or
                array ``(S, C, H, W)`` or ``(S, H, W, C)``, uint8 or float in [0, 1], or a list of arrays or PIL images.
            labels: S labels in any form of :func:`~pyro_smat.inference.deployment.support_labels.read_labels`. Their
                distinct values are the classes, as they are: sorted where they can be, else in order of appearance.
            seed: of the routings that a posterior predictive draws.
            refine: a refinement, its name, or a table: "frank_wolfe", "gradient", "risk_averse" or "dirichlet", with
                options as in "frank_wolfe:steps=3,max_active=2". It starts from the posterior's mean (its mode where
                the router decides by "map") with the deployed masks. None: the router alone.

        Returns:
            The task; the very same one when it is among the last that were asked for.

        Raises:
            ValueError: for images or labels that are not usable, fewer than two classes, S labels that are not S, an
                unknown mode, or one that needs experts where there are none.

        Warns:
            InputWarning: of images that are unlike those that the router was trained on.
            DuplicateWarning: of shots that repeat others, pixel for pixel with the same label; each counts once.
        """
        pixels, values, classes = self._checked(images, labels)
        seed = _seed(seed)
        mode = parse_refinement(refine) if isinstance(refine, str | Mapping) else refine
        if mode is not None and not isinstance(mode, RefinementMode):
            raise ValueError(f"refine is {refine!r}; expected a refinement, its name or table, or None")
        named = tuple((type(label), label) for label in classes)  # True is not 1
        key = (support_digest(pixels, [classes.index(value) for value in values]), named, seed, mode)
        return self._tasks.get(key, lambda: self._adapted(pixels, values, classes, seed, mode))

    def adapt_many(
        self,
        supports: Iterable[Support | EpisodeBatch],
        *,
        features: SourceFeatures | None = None,
        shared: NetworkFeatures | None = None,
        seed: int = 0,
        at_once: int = 32,
    ) -> Iterator[AdaptedTask]:
        """Route many supports, a stream or a list, and yield their tasks in order; the numbers of :meth:`adapt`.

        Of ``at_once`` supports that are read ahead, those with as many shots and classes go through sources and guide
        as one batch; :meth:`answer_many` asks such tasks together. These tasks are not kept in the cache, and one of
        them that is kept keeps the supports of those that it was routed with.

        Args:
            supports: pairs of images and labels as in :meth:`adapt`, or batches of episodes.
            features: frozen features of the pool that batches of episodes are drawn from, when they are there already.
            shared: the same for composed networks, which pays where many tasks use the same ones (those of a catalog)
                on the images of one pool; queries then come with their rows, as
                :class:`~pyro_smat.episodes.Labelled`.
            seed: as in :meth:`adapt`, the same for every task.
            at_once: supports a chunk, at least 1.

        Raises:
            ValueError: for a support that is not usable, with its number from 0 where there are others, anything but
                pairs and batches, or ``at_once`` below 1.

        Example:
            >>> from pyro_smat import EpisodeSampler, RoutedClassifier, glyph_pool
            >>> from pyro_smat.inference.assembly.config import RunConfig
            >>> from pyro_smat.inference.assembly.router import build_router
            >>> classifier = RoutedClassifier(build_router(RunConfig(experts={"count": 0})))
            >>> stream = [EpisodeSampler(glyph_pool("validation"), 3, 2, 1).episode() for _ in range(2)]
            >>> tasks = classifier.adapt_many((one.support.images, one.support.labels) for one in stream)
            >>> [answer.predictions for answer in classifier.answer_many(tasks, (one.query.images for one in stream))]
            [[0, 1, 2], [0, 1, 2]]
        """
        if at_once < 1:
            raise ValueError(f"at_once is {at_once}; expected at least 1 support")
        if isinstance(supports, Mapping):
            raise ValueError("supports are a mapping; expected pairs (images, labels): adapt_many(supports.values())")
        seed, count = _seed(seed), 0
        waiting: list[tuple[int, Support]] = []
        for one in supports:
            if isinstance(one, EpisodeBatch):
                yield from self._route_pairs(waiting, seed)
                waiting, count = [], count + len(one)
                for start in range(0, len(one), at_once):
                    yield from self._route(one[start : start + at_once], seed, features=features, shared=shared)
            else:
                waiting.append((count, as_pair(one, count)))
                count += 1
                if len(waiting) == at_once:
                    yield from self._route_pairs(waiting, seed)
                    waiting = []
        yield from self._route_pairs(waiting, seed)

    @own_defaults()
    def answer_many(self, tasks: Iterable[AdaptedTask], queries: Iterable[Any]) -> list[TaskAnswer]:
        """What tasks say of their queries; those that were routed together are asked as one batch.

        Args:
            tasks: of :meth:`adapt_many`, whose example shows both.
            queries: of each task, in any form that its ``predict_proba`` takes; None for none.

        Returns:
            The answers in order: for each task the numbers that it gives when it is asked alone.

        Raises:
            ValueError: for images that are not usable, or other numbers of tasks and queries.
        """
        return answers_of(list(tasks), list(queries))

    def _route_pairs(self, supports: Sequence[tuple[int, Support]], seed: int) -> list[AdaptedTask]:
        """Numbered supports as one batch."""
        if not supports:
            return []
        episodes, named = [], []
        for number, (images, labels) in supports:
            try:
                checked, values, classes = self._checked(images, labels)
            except ValueError as error:
                if supports[-1][0] == 0:
                    raise
                raise ValueError(f"support {number}: {error}") from error
            episodes.append(as_episode(checked, values, classes))
            named.append(classes)
        return self._route(EpisodeBatch.collate(episodes), seed, classes=named)

    @own_defaults()
    @torch.no_grad()
    def _route(
        self,
        batch: EpisodeBatch,
        seed: int,
        *,
        classes: Sequence[tuple[Hashable, ...]] | None = None,
        features: SourceFeatures | None = None,
        shared: NetworkFeatures | None = None,
    ) -> list[AdaptedTask]:
        """The tasks of a batch, without its padding and queries: each as :meth:`adapt` makes it."""
        batch = self._attached(batch.to(self.router.device), features)
        if classes is None:
            numbers = [tuple(str(k) for k in range(way)) for way in batch.way.tolist()]
            classes = [names or own for names, own in zip(batch.class_names, numbers, strict=True)]
        made: dict[int, AdaptedTask] = {}
        for alike in by_shape(batch):
            part = unpadded(batch, alike)
            posterior = self.router.guide.posterior(part)
            together = RoutedTasks(self, part, posterior, [classes[i] for i in alike], seed=seed, shared=shared)
            made.update((index, AdaptedTask(together, place)) for place, index in enumerate(alike))
        return [made[index] for index in range(len(batch))]

    @torch.no_grad()
    def _adapted(
        self,
        images: Tensor,
        values: list[Hashable],
        classes: tuple[Hashable, ...],
        seed: int,
        mode: RefinementMode | None,
    ) -> AdaptedTask:
        batch = EpisodeBatch.collate([as_episode(images, values, classes)]).to(self.router.device)
        (task,) = self._route(batch, seed, classes=[classes])
        if mode is None:
            return task
        together = task.together
        posterior = together.routed
        start = posterior.mode if isinstance(self.rule, Map) else posterior.mean
        refinement = mode.refine(self.router.model, self.deployed_basis, together.batch, start[0])
        return AdaptedTask(RoutedTasks(self, together.batch, posterior, [classes], seed=seed, refinement=refinement))

    def _checked(self, images: Any, labels: Any) -> tuple[Tensor, list[Hashable], tuple[Hashable, ...]]:
        """Images, labels and classes of a support that can be used."""
        pixels = read_images(images, self.image_form)
        values, classes = read_labels(labels, len(pixels))
        return *without_repeats(pixels, values, stacklevel=4), classes

    def _attached(self, batch: EpisodeBatch, features: SourceFeatures | None = None) -> EpisodeBatch:
        try:
            attached = (features or self.router.features()).attach(batch)
        except RuntimeError as error:  # of layers that these images are too small for, or what else the network has
            channels, height, width = batch.support.images.shape[2:]
            model = self.router.model
            raise unfit_images(model.network, model.source_basis[0], (channels, height, width), error) from error
        refuse_broken_features(attached, self.router.library)
        return attached

    def cache_info(self) -> CacheInfo:
        """How often :meth:`adapt` found its task among the kept ones, and how many are kept."""
        return self._tasks.info()


def _seed(seed: Any) -> int:
    if isinstance(seed, bool) or not isinstance(seed, int) or not -(2**63) <= seed < 2**64:
        raise ValueError(f"seed is {seed!r:.60}; expected an integer of 64 bits")
    return seed
