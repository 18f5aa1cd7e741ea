"""RoutedClassifier: a trained router as a folder, and what a user does with it.

``RoutedClassifier.load(folder).adapt(images, labels).predict_proba(new_images)``. The folder is that of
:mod:`~pyro_smat.inference.deployment.saving`: nothing in it is executed or unpickled.
``adapt(..., refine="frank_wolfe")`` goes on from the router's routing with a refinement of
:mod:`pyro_smat.inference.deployment.refinement`.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor, nn

from pyro_smat.episodes import Episode, EpisodeBatch, EpisodeSampler, Labelled
from pyro_smat.episodes.pixels import PixelStatistics
from pyro_smat.guides import RoutingGuide
from pyro_smat.guides.pseudo_bma import Weights
from pyro_smat.inference.assembly.defaults import own_defaults
from pyro_smat.inference.assembly.router import Router, choose_device
from pyro_smat.inference.decision.choosing import initial_deployment
from pyro_smat.inference.decision.deployment import Deployment
from pyro_smat.inference.decision.rules import Map
from pyro_smat.inference.deployment.adapted_task import AdaptedTask
from pyro_smat.inference.deployment.describing import router_of
from pyro_smat.inference.deployment.from_sources import averaging_pair, fit_temperature_on, support_deployment
from pyro_smat.inference.deployment.inputs import ImageForm, read_images
from pyro_smat.inference.deployment.refinement import RefinementMode, parse_refinement
from pyro_smat.inference.deployment.refinement.cache import CacheInfo, TaskCache, support_digest
from pyro_smat.inference.deployment.saving import load_router, save_router
from pyro_smat.inference.deployment.support_labels import read_labels
from pyro_smat.inference.training.settings import Precision
from pyro_smat.models import RoutedModel
from pyro_smat.networks.basis import Basis
from pyro_smat.networks.features import SourceFeatures
from pyro_smat.networks.heads import Metric
from pyro_smat.networks.network_features import NetworkFeatures
from pyro_smat.networks.support_head import Classifier, HeadSettings
from pyro_smat.registry.entries import Factory
from pyro_smat.sources import SourceLibrary
from pyro_smat.sources.opening import Source

CACHED_TASKS = 8
Support = tuple[Any, Any]  # images and labels, as adapt takes them


class RoutedClassifier:
    """A trained router, ready to adapt to tasks; any number of threads may use it.

    Args:
        router: model and guide.
        deployment: how it decides and when it abstains; default: the rule of the config, never abstaining.
        cache_size: adapted tasks to keep, the ones used last; 0 for none. A task keeps the networks it has composed.

    The classifier is a snapshot: to train the router further, make a new one.

    Example:
        >>> from pyro_smat import EpisodeSampler, glyph_pool
        >>> from pyro_smat.inference.assembly.config import RunConfig
        >>> from pyro_smat.inference.assembly.router import build_router
        >>> router = build_router(RunConfig(experts={"count": 0}))  # over the glyph sources of the package, not trained
        >>> sampler = EpisodeSampler(glyph_pool("validation"), 3, 2, 1)
        >>> classifier, episode = RoutedClassifier(router), sampler.episode()
        >>> task = classifier.adapt(episode.support.images, ["a", "a", "b", "b", "c", "c"])
        >>> task.predict_proba(episode.query.images).shape
        torch.Size([3, 3])
    """

    @own_defaults()
    def __init__(self, router: Router, deployment: Deployment | None = None, *, cache_size: int = CACHED_TASKS) -> None:
        self.router = router
        self.deployment = initial_deployment(router.config.decision) if deployment is None else deployment
        self._tasks: TaskCache[AdaptedTask] = TaskCache(cache_size)
        router.model.eval()
        router.guide.eval()
        self.rule = self.deployment.decider(router.model, router.catalog)
        self.fallback = self.deployment.fallback_rule(router.model, router.catalog)
        samples = self.deployment.gate_samples
        generator = torch.Generator(device=router.device).manual_seed(router.config.seed)
        with torch.no_grad():  # (m, C, d): one basis, or one for every sample of the experts' gates
            self.bases = router.model.basis(samples, generator) if samples else router.model.basis().unsqueeze(0)

    @classmethod
    @own_defaults()
    def from_trained(
        cls,
        model: RoutedModel,
        guide: RoutingGuide,
        *,
        image_shape: tuple[int, int, int] | None = None,
        validation: EpisodeSampler | None = None,
        deployment: Deployment | None = None,
        cache_size: int = CACHED_TASKS,
    ) -> RoutedClassifier:
        """A deployable router from a model and a guide that were trained in Python.

        Args:
            model, guide: the pair. Classes of one's own work; :meth:`load` then asks for them.
            image_shape: ``(C, H, W)`` of the images that it will see; default: of the validation images.
            validation: held-out episodes on which score and threshold of abstention are chosen; without them the router
                never abstains.
            deployment: how it decides, instead of choosing.
            cache_size: adapted tasks to keep.

        Raises:
            ValueError: when neither image_shape nor validation is given, or the pair cannot be saved.
        """
        if image_shape is None and validation is None:
            raise ValueError("got neither image_shape nor validation; expected (channels, height, width) or a sampler")
        shape = tuple(validation.pool.images.shape[1:]) if image_shape is None and validation else image_shape
        assert shape is not None
        router = router_of(model, guide, shape)
        if validation is not None:
            router = replace(router, pixels=PixelStatistics.of(validation.pool))
        if deployment is None and validation is not None:
            from pyro_smat.inference.evaluation.choosing import choose_on  # evaluation stands above deployment

            deployment = choose_on(router, validation)
        return cls(router, deployment, cache_size=cache_size)

    @classmethod
    def from_sources(
        cls,
        sources: SourceLibrary | Mapping[str, Source],
        *,
        network: str | Mapping[str, Any] | nn.Module,
        image_shape: tuple[int, int, int],
        head: Sequence[str] = (),
        weights: Weights = "pseudo_bma",
        temperature: float = 0.3,
        label_noise: float = 0.1,
        metric: Metric = "cosine",
        classifier: Classifier = "prototypes",
        transduction: float = 0.0,
        tolerance: float = 0.3,
        validation: EpisodeSampler | None = None,
        device: str | torch.device = "cpu",
        cache_size: int = CACHED_TASKS,
    ) -> RoutedClassifier:
        r"""A router that needs no training: predictions of all sources, weighted by how well each explains the support.

        .. math:: p(y \mid x, S) = \sum_r q(r \mid S)\, p_r(y \mid x, S), \qquad q(r \mid S) \propto e^{-\ell_r(S) / T}

        with the leave-one-out loss of :class:`~pyro_smat.guides.PseudoBMAGuide`. A task is relied on as long as these
        predictions get at most a share ``tolerance`` of its shots wrong, each left out in turn; with one shot a class
        nothing can be left out, so such a task is never relied on. A router is worth training where many tasks of a
        kind will come (docs/evidence.md).

        Args:
            sources: checkpoints of one network by name, the fallback first, or an open library.
            network: what they are checkpoints of: a name, a choice with its options, or a module.
            image_shape: ``(C, H, W)`` of the images that it will see.
            head: patterns of names of tensors that are left out, such as ``("classifier.*",)``.
            weights, temperature: see :class:`~pyro_smat.guides.PseudoBMAGuide`.
            label_noise: share of wrong labels that is expected; shots are weighted by how probably theirs is right
                (:mod:`pyro_smat.networks.shot_trust`). 0 trusts every label.
            metric, classifier, transduction: of the head, see :class:`~pyro_smat.models.RoutedModel`.
            tolerance: largest leave-one-out error of a task that is relied on.
            validation: labelled episodes, if there are any: the temperature is fitted on them, and what a task says of
                itself is learned from them.
            device: where networks run.
            cache_size: adapted tasks to keep.

        Raises:
            ValueError: for checkpoints that do not fit the network, or options out of their range.

        Example:
            >>> from pyro_smat import EpisodeSampler, glyph_pool
            >>> from pyro_smat.sources.pretraining import glyph_network, shipped_glyph_sources
            >>> classifier = RoutedClassifier.from_sources(
            ...     shipped_glyph_sources(), network=glyph_network(), image_shape=(1, 32, 32)
            ... )
            >>> episode = EpisodeSampler(glyph_pool("validation"), 3, 5, 1, seed=1).episode()
            >>> task = classifier.adapt(episode.support.images, ["a"] * 5 + ["b"] * 5 + ["c"] * 5)
            >>> task.reliable
            True
        """
        settings = HeadSettings(classifier, metric, label_noise, transduction)
        model, guide = averaging_pair(
            sources, network, head, weights=weights, temperature=temperature, settings=settings, device=device
        )
        if validation is not None:
            fit_temperature_on(model, guide, validation)
        deployment = support_deployment(tolerance) if validation is None else None
        return cls.from_trained(
            model,
            guide,
            image_shape=image_shape,
            validation=validation,
            deployment=deployment,
            cache_size=cache_size,
        )

    @property
    def source_names(self) -> tuple[str, ...]:
        return self.router.library.names

    def __repr__(self) -> str:
        return f"RoutedClassifier({self.router!r}, {self.deployment!r})"

    def save(self, folder: str | Path) -> Path:
        """Write router.safetensors and router.json; returns the folder.

        Raises:
            ValueError: when the folder cannot be written to.
        """
        save_router(Path(folder), self.router, self.deployment)
        return Path(folder)

    @classmethod
    @own_defaults()
    def load(
        cls,
        folder: str | Path,
        *,
        device: str | torch.device = "cpu",
        network: nn.Module | None = None,
        own: Mapping[str, Factory] | None = None,
        precision: Precision | None = None,
        cache_size: int = CACHED_TASKS,
    ) -> RoutedClassifier:
        """Open what :meth:`save` wrote. Nothing in the folder is run, whatever it says.

        Args:
            folder: with router.safetensors and router.json.
            device: "auto", "cpu", "cuda" or "mps".
            network: the template, when it is not one that the registry can build.
            own: kind ("model", "guide", "prior", "encoder", ...) -> class, for routers that were trained with classes
                of the user's own.
            precision: of networks and features: "float32", "bfloat16", "float16" or "auto" (bfloat16 on a CUDA GPU,
                float32 elsewhere). None: as ``training.precision`` had it.
            cache_size: adapted tasks to keep.

        Raises:
            ValueError: for missing, damaged or foreign files, or classes that were not passed.
        """
        if precision not in (None, *get_args(Precision)):
            raise ValueError(f"precision is {precision!r}; expected one of {get_args(Precision)}, or None")
        where = choose_device(device) if isinstance(device, str) else device
        router, deployment = load_router(Path(folder), where, network=network, own=own, precision=precision)
        try:
            return cls(router, deployment, cache_size=cache_size)
        except ValueError as error:
            raise ValueError(f"{folder}: {error}") from error

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
        """
        pixels, values, classes = self._checked(images, labels)
        seed = _seed(seed)
        mode = parse_refinement(refine) if isinstance(refine, str | Mapping) else refine
        if mode is not None and not isinstance(mode, RefinementMode):
            raise ValueError(f"refine is {refine!r}; expected a refinement, its name or table, or None")
        named = tuple((type(label), label) for label in classes)  # True is not 1
        key = (support_digest(pixels, [classes.index(value) for value in values]), named, seed, mode)
        return self._tasks.get(key, lambda: self._adapt(pixels, values, classes, seed, mode))

    @property
    def image_form(self) -> ImageForm:
        """What the router's images are like."""
        data, network = self.router.config.data, self.router.model.network
        return ImageForm(data.channels, data.size, getattr(network, "resizes", False), self.router.pixels)

    def _checked(self, images: Any, labels: Any) -> tuple[Tensor, list[Hashable], tuple[Hashable, ...]]:
        """Images, labels and classes of a support that can be used."""
        pixels = read_images(images, self.image_form)
        return pixels, *read_labels(labels, len(pixels))

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

        Sources and guide see many supports at once; at most ``at_once`` of them are read ahead. These tasks are not
        kept in the cache.

        Args:
            supports: pairs of images and labels as in :meth:`adapt`, or batches of episodes.
            features: frozen features of the pool that batches of episodes are drawn from, when they are there already.
            shared: the same for composed networks, which pays where many tasks use the same ones (those of a catalog)
                on the images of one pool; queries then come with their rows, as
                :class:`~pyro_smat.episodes.Labelled`.
            seed: as in :meth:`adapt`, the same for every task.
            at_once: supports a chunk, at least 1.

        Raises:
            ValueError: for a support that is not usable, or ``at_once`` below 1.

        Example:
            >>> from pyro_smat import EpisodeSampler, glyph_pool
            >>> from pyro_smat.inference.assembly.config import RunConfig
            >>> from pyro_smat.inference.assembly.router import build_router
            >>> classifier = RoutedClassifier(build_router(RunConfig(experts={"count": 0})))
            >>> stream = [EpisodeSampler(glyph_pool("validation"), 3, 2, 1).episode() for _ in range(2)]
            >>> tasks = classifier.adapt_many((one.support.images, one.support.labels) for one in stream)
            >>> [len(task.predict(one.query.images)) for task, one in zip(tasks, stream)]
            [3, 3]
        """
        if at_once < 1:
            raise ValueError(f"at_once is {at_once}; expected at least 1 support")
        seed = _seed(seed)
        waiting: list[Support] = []
        for one in supports:
            if isinstance(one, EpisodeBatch):
                yield from self._adapt_pairs(waiting, seed)
                waiting = []
                for start in range(0, len(one), at_once):
                    yield from self._adapt_batch(one[start : start + at_once], seed, features, shared)
            else:
                waiting.append(one)
                if len(waiting) == at_once:
                    yield from self._adapt_pairs(waiting, seed)
                    waiting = []
        yield from self._adapt_pairs(waiting, seed)

    def _adapt_pairs(self, supports: Sequence[Support], seed: int) -> list[AdaptedTask]:
        """Supports of the same size together, so that none is padded."""
        groups: dict[Any, list[tuple[int, Episode, tuple[Hashable, ...]]]] = {}
        for index, (images, labels) in enumerate(supports):
            checked, values, classes = self._checked(images, labels)
            groups.setdefault((checked.shape, len(classes)), []).append(
                (index, _episode(checked, values, classes), classes)
            )
        made: dict[int, AdaptedTask] = {}
        for group in groups.values():
            batch = EpisodeBatch.collate([episode for _, episode, _ in group])
            tasks = self._adapt_batch(batch, seed, classes=[classes for _, _, classes in group])
            made.update(zip((index for index, _, _ in group), tasks, strict=True))
        return [made[index] for index in range(len(supports))]

    @own_defaults()
    @torch.no_grad()
    def _adapt_batch(
        self,
        batch: EpisodeBatch,
        seed: int,
        features: SourceFeatures | None = None,
        shared: NetworkFeatures | None = None,
        classes: Sequence[tuple[Hashable, ...]] | None = None,
    ) -> list[AdaptedTask]:
        batch = self._attached(batch.to(self.router.device), features)
        seen, tasks = batch.support.features, []
        assert seen is not None
        for index in range(len(batch)):  # without padding and queries, so that it is what adapt() makes
            episode, real = batch.episode(index), batch.support.mask[index]
            names = episode.class_names or tuple(str(k) for k in range(int(batch.way[index])))
            own = EpisodeBatch.collate([Episode(episode.support, way=int(batch.way[index]), class_names=names)])
            own = own.with_features(seen[index : index + 1, :, real])
            shown = names if classes is None else classes[index]
            tasks.append(AdaptedTask(self, own, self.router.guide.posterior(own), shown, seed, shared=shared))
        return tasks

    def cache_info(self) -> CacheInfo:
        """How often :meth:`adapt` found its task among the kept ones, and how many are kept."""
        return self._tasks.info()

    @torch.no_grad()
    def _adapt(
        self,
        images: Tensor,
        values: list[Hashable],
        classes: tuple[Hashable, ...],
        seed: int,
        mode: RefinementMode | None,
    ) -> AdaptedTask:
        episode = _episode(images, values, classes)
        batch = EpisodeBatch.collate([episode]).to(self.router.device)
        batch = self._attached(batch)
        posterior = self.router.guide.posterior(batch)
        refinement = None
        if mode is not None:
            start = posterior.mode if isinstance(self.rule, Map) else posterior.mean
            refinement = mode.refine(self.router.model, self.deployed_basis, batch, start[0])
        return AdaptedTask(self, batch, posterior, classes, seed, refinement)

    def _attached(self, batch: EpisodeBatch, features: SourceFeatures | None = None) -> EpisodeBatch:
        try:
            return (features or self.router.features()).attach(batch)
        except RuntimeError as error:  # of layers that these images are too small for
            shape = tuple(batch.support.images.shape[2:])
            raise ValueError(
                f"images are {shape}, on which the network cannot run ({error}); expected "
                f"{self.router.config.data.size} x {self.router.config.data.size} pixels, as in training"
            ) from error

    @property
    @torch.no_grad()
    def deployed_basis(self) -> Basis:
        """The basis ``(C, d)`` with the deployed masks."""
        return self.router.model.basis() if self.deployment.gate_samples else self.bases[0]


def _seed(seed: Any) -> int:
    if isinstance(seed, bool) or not isinstance(seed, int) or not -(2**63) <= seed < 2**64:
        raise ValueError(f"seed is {seed!r:.60}; expected an integer of 64 bits")
    return seed


def _episode(images: Tensor, values: Sequence[Hashable], classes: Sequence[Hashable]) -> Episode:
    index = {value: k for k, value in enumerate(classes)}
    target = torch.tensor([index[value] for value in values])
    return Episode(Labelled(images, target), class_names=tuple(str(c) for c in classes))
