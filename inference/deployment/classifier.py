"""RoutedClassifier: a trained router as a folder, and what a user does with it.

``RoutedClassifier.load(folder).adapt(images, labels).predict_proba(new_images)``. The folder is that of
:mod:`~pyro_smat.inference.deployment.saving`: nothing in it is executed or unpickled.
``adapt(..., refine="frank_wolfe")`` goes on from the router's routing with a refinement of
:mod:`pyro_smat.inference.deployment.refinement`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import torch
from torch import nn

from pyro_smat.episodes import EpisodeSampler
from pyro_smat.episodes.pixels import PixelStatistics
from pyro_smat.guides import RoutingGuide
from pyro_smat.guides.pseudo_bma import Weights
from pyro_smat.inference.assembly.defaults import own_defaults
from pyro_smat.inference.assembly.router import choose_device
from pyro_smat.inference.decision.deployment import Deployment
from pyro_smat.inference.deployment.adapting import CACHED_TASKS, TaskRouter
from pyro_smat.inference.deployment.describing import copied_pair, router_of
from pyro_smat.inference.deployment.from_sources import (
    SUPPORT_TOLERANCE,
    averaging_pair,
    fit_temperature_on,
    shape_of,
    support_deployment,
)
from pyro_smat.inference.deployment.network_check import check_runs, checked_module, checked_shape
from pyro_smat.inference.deployment.saving import load_router, save_router
from pyro_smat.inference.training.settings import Precision
from pyro_smat.models import RoutedModel
from pyro_smat.networks.heads import Metric
from pyro_smat.networks.support_head import Classifier, HeadSettings
from pyro_smat.registry.entries import Factory
from pyro_smat.sources import SourceLibrary
from pyro_smat.sources.opening import Source


class RoutedClassifier(TaskRouter):
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
        tolerance: float | None = None,
        cache_size: int = CACHED_TASKS,
    ) -> RoutedClassifier:
        """A deployable router from a model and a guide that were trained in Python, as they are now.

        Args:
            model, guide: the pair, of which copies are made (but for the sources): they may be trained further. Classes
                of one's own work; :meth:`load` then asks for them.
            image_shape: ``(C, H, W)`` of the images that it will see; default: of the validation images.
            validation: held-out episodes on which score and threshold of abstention are chosen; without them the router
                never abstains.
            deployment: how it decides, instead of choosing.
            tolerance: largest share of wrong answers that is predicted of a task that is relied on; None chooses it on
                the validation episodes.
            cache_size: adapted tasks to keep.

        Raises:
            ValueError: when neither image_shape nor validation is given, or the pair cannot be saved.
        """
        if image_shape is None and validation is None:
            raise ValueError("got neither image_shape nor validation; expected (channels, height, width) or a sampler")
        shape = None if image_shape is None else checked_shape(image_shape)
        if validation is not None:
            shape = shape_of(validation, shape)
        assert shape is not None
        router = router_of(*copied_pair(model, guide), shape)
        check_runs(model.network, model.source_basis[0], shape)
        if validation is not None:
            router = replace(router, pixels=PixelStatistics.of(validation.pool))
        if deployment is None and validation is not None:
            from pyro_smat.inference.evaluation.choosing import choose_on  # evaluation stands above deployment

            if tolerance is not None:
                router = replace(router, config=router.config.replaced(decision={"tolerance": tolerance}))
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
        tolerance: float | None = None,
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
            head: patterns of names of tensors that are left out, such as ``("classifier.*",)``. The network keeps its
                own values of them: replace a last layer of its own by ``nn.Identity()``, or features pass through it
                (:mod:`pyro_smat.sources.used_heads` warns).
            weights, temperature: see :class:`~pyro_smat.guides.PseudoBMAGuide`.
            label_noise: share of wrong labels that is expected; shots are weighted by how probably theirs is right
                (:mod:`pyro_smat.networks.shot_trust`). 0 trusts every label.
            metric, classifier, transduction: of the head, see :class:`~pyro_smat.models.RoutedModel`.
            tolerance: largest leave-one-out error of a task that is relied on; None for 0.3. With ``validation`` the
                largest share of wrong answers that is predicted; None chooses it.
            validation: labelled episodes, if there are any: the temperature is fitted on them, and what a task says of
                itself is learned from them.
            device: where networks run: "auto", "cpu", "cuda" or "mps", or a device.
            cache_size: adapted tasks to keep.

        Raises:
            ValueError: for checkpoints that do not fit the network, a network that does not run on such images or gives
                no features ``(n, f)``, validation images of another shape, or options out of their range.

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
        shape = checked_shape(image_shape)
        if validation is not None:
            shape_of(validation, shape)
        model, guide = averaging_pair(
            sources,
            network,
            head,
            image_shape=shape,
            weights=weights,
            temperature=temperature,
            settings=HeadSettings(classifier, metric, label_noise, transduction),
            device=device,
        )
        if validation is not None:
            check_runs(model.network, model.source_basis[0], shape)
            fit_temperature_on(model, guide, validation)
        deployment = None
        if validation is None:
            deployment = support_deployment(SUPPORT_TOLERANCE if tolerance is None else tolerance)
        return cls.from_trained(
            model,
            guide,
            image_shape=shape,
            validation=validation,
            deployment=deployment,
            tolerance=None if validation is None else tolerance,
            cache_size=cache_size,
        )

    def __repr__(self) -> str:
        return f"RoutedClassifier({self.router!r}, {self.deployment!r})"

    def save(self, folder: str | Path) -> Path:
        """Write router.safetensors and router.json; returns the folder.

        A network "transformers:..." has its configuration beside them, in network.json: loading needs neither its
        folder nor a cache.

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
        if network is not None:
            checked_module(network)
        where = choose_device(device) if isinstance(device, str) else device
        router, deployment = load_router(Path(folder), where, network=network, own=own, precision=precision)
        try:
            return cls(router, deployment, cache_size=cache_size)
        except ValueError as error:
            raise ValueError(f"{folder}: {error}") from error
