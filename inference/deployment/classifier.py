"""RoutedClassifier: a trained router as a folder, and what a user does with it.

``RoutedClassifier.load(folder).adapt(images, labels).predict_proba(new_images)``. The folder holds router.safetensors
and router.json; nothing in it is executed or unpickled. ``adapt(..., refine="frank-wolfe")`` goes on from the router's
routing with a refinement of :mod:`pyro_smat.inference.deployment.refinement`.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn

from pyro_smat.episodes import Episode, EpisodeBatch, Labelled, check_images
from pyro_smat.inference.decision.choosing import initial_deployment
from pyro_smat.inference.decision.deployment import Deployment
from pyro_smat.inference.decision.format_3 import decision_from_format_3, deployment_from_format_3
from pyro_smat.inference.decision.rules import Map
from pyro_smat.inference.deployment.adapted_task import AdaptedTask
from pyro_smat.inference.deployment.refinement import RefinementMode, parse_refinement
from pyro_smat.inference.deployment.refinement.cache import CacheInfo, TaskCache, support_digest
from pyro_smat.inference.runs.assembly import Router, build_router, choose_device
from pyro_smat.inference.runs.config import RunConfig, build_config
from pyro_smat.inference.training.checkpoint import write_atomically
from pyro_smat.networks import build_network
from pyro_smat.routing import Catalog
from pyro_smat.sources import SourceLibrary, load_weights
from pyro_smat.sources.pretraining import GLYPH_NETWORK
from pyro_smat.sources.template import Template, matches, space_without

FORMAT = 4
CACHED_TASKS = 8


class RoutedClassifier:
    """A trained router, ready to adapt to tasks.

    Args:
        router: model and guide.
        deployment: rule, score, threshold and fallback; None: the rule of the config, which never abstains.
        cache_size: adapted tasks to keep, the ones used last; 0 for none. A task keeps the networks it has composed.

    The classifier is a snapshot: to train the router further, make a new one. A router of a network that
    :func:`~pyro_smat.networks.backbones.build_network` does not know can be saved too; pass the template to
    :meth:`load`.
    """

    def __init__(self, router: Router, deployment: Deployment | None = None, *, cache_size: int = CACHED_TASKS) -> None:
        self.router = router
        self.deployment = initial_deployment(router.config.decision) if deployment is None else deployment
        self.rule = self.deployment.decider(router.model, router.catalog)
        self.fallback = self.deployment.fallback_rule(router.model, router.catalog)
        self._tasks: TaskCache[AdaptedTask] = TaskCache(cache_size)
        router.model.eval()
        router.guide.eval()
        samples = self.deployment.gate_samples
        generator = torch.Generator(device=router.device).manual_seed(router.config.seed)
        with torch.no_grad():  # (m, C, d): one basis, or one for every sample of the experts' gates
            self.bases = router.model.basis(samples, generator) if samples else router.model.basis().unsqueeze(0)

    @property
    def source_names(self) -> tuple[str, ...]:
        return self.router.library.names

    def save(self, folder: str | Path) -> Path:
        """Write router.safetensors and router.json.

        Raises:
            ValueError: when the folder cannot be written to.
        """
        folder = Path(folder)
        model, guide = self.router.model, self.router.guide
        tensors = {f"model.{k}": v for k, v in model.state_dict().items()}
        tensors |= {f"guide.{k}": v for k, v in guide.state_dict().items()}
        if self.router.catalog is not None:
            tensors["catalog"] = self.router.catalog.coefficients
        if self.router.descriptors is not None:
            tensors["descriptors"] = self.router.descriptors
        weights = self.router.network.state_dict()
        tensors |= {f"head.{name}": weights[name] for name in _head_of(self.router.network, self.router.config)}
        tensors = {k: v.clone() for k, v in tensors.items()}  # the format refuses memory that priors and catalog share
        tensors["sources"] = self.router.library.basis
        content = to_safetensors({k: v.detach().cpu().contiguous() for k, v in tensors.items()})
        network, options = _network_of(self.router)
        description = {
            "format": FORMAT,
            "network": network,
            "network_options": options,
            "source_names": list(self.source_names),
            "own_classes": {
                "model": _own_class(model, self.router.config.custom.model),
                "guide": _own_class(guide, self.router.config.custom.guide),
            },
            "catalog": None if self.router.catalog is None else list(self.router.catalog.names),
            "config": self.router.config.model_dump(mode="json"),
            "deployment": self.deployment.to_dict(),
        }
        write_atomically(folder / "router.safetensors", content)
        write_atomically(folder / "router.json", json.dumps(description, indent=2).encode())
        return folder

    @classmethod
    def load(
        cls,
        folder: str | Path,
        *,
        device: str | torch.device = "cpu",
        network: nn.Module | None = None,
        model_class: type | None = None,
        guide_class: type | None = None,
        cache_size: int = CACHED_TASKS,
    ) -> RoutedClassifier:
        """Open what :meth:`save` wrote.

        Args:
            folder: with router.safetensors and router.json.
            device: "auto", "cpu" or "cuda".
            network: the template, when it is not one of the built-in networks.
            model_class, guide_class: the classes of a router that was trained with classes of the user's own; loading
                never runs a file that the folder names.
            cache_size: adapted tasks to keep.

        Raises:
            ValueError: for missing, truncated or foreign files, or classes that were not passed.
        """
        folder = Path(folder)
        description = _read_description(folder / "router.json")
        tensors = load_weights(folder / "router.safetensors")
        if description["format"] == 3:
            decision = description["config"]["decision"]
            description["deployment"] = deployment_from_format_3(description["abstention"], decision).to_dict()
            description["config"]["decision"] = decision_from_format_3(decision)
        config = build_config(description["config"])
        for what, given in (("model", model_class), ("guide", guide_class)):
            own = description["own_classes"][what]
            if own is not None and given is None:
                raise ValueError(
                    f"{folder}: was trained with a {what} of your own, {own}; pass {what}_class= that class "
                    f"(command line: --{what} {own})"
                )
        module = network or build_network(description["network"], **description["network_options"])
        head = _head_of(module, config)
        if head:
            module = copy.deepcopy(module)
            module.load_state_dict({name: tensors.pop(f"head.{name}") for name in head}, strict=False)
        space = space_without(module, config.sources.blocks or None, config.sources.head)
        if "sources" not in tensors or tensors["sources"].shape != (len(description["source_names"]), space.dim):
            found = tuple(tensors["sources"].shape) if "sources" in tensors else "missing"
            raise ValueError(
                f"{folder}: sources are {found}; expected ({len(description['source_names'])}, {space.dim}) for "
                f"network {description['network']!r}"
            )
        template = Template.from_module(module, config.sources.head)  # what a source that is added later must hold
        library = SourceLibrary(tuple(description["source_names"]), tensors.pop("sources"), space, template)
        where = choose_device(device) if isinstance(device, str) else device
        names = description["catalog"]
        if names is not None and "catalog" not in tensors:
            raise ValueError(
                f"{folder}: the catalog of {len(names)} routings is missing; expected it beside the sources"
            )
        catalog = None if names is None else Catalog(tensors.pop("catalog"), tuple(names))
        router = build_router(
            config,
            where,
            (module, library),
            catalog=catalog,
            descriptors=tensors.pop("descriptors", None),
            model_class=model_class,
            guide_class=guide_class,
        )
        for part, target in (("model", router.model), ("guide", router.guide)):
            state = {k.removeprefix(f"{part}."): v for k, v in tensors.items() if k.startswith(f"{part}.")}
            try:
                target.load_state_dict(state)
            except RuntimeError as error:
                raise ValueError(f"{folder}: the saved {part} does not fit its config ({error})") from error
        return cls(router, Deployment.from_dict(description["deployment"]), cache_size=cache_size)

    def adapt(
        self,
        images: Tensor,
        labels: Sequence[str] | Sequence[int] | Tensor,
        *,
        seed: int = 0,
        refine: RefinementMode | Mapping[str, Any] | str | None = None,
    ) -> AdaptedTask:
        """Route a labelled support set, and refine the routing on it.

        A refinement fits the support better than the router does, its wrong labels included. It pays where the router
        is far from the best routing and the support is large and clean; with a handful of noisy shots the router,
        which has learned from many tasks what to believe, is the safer one. Try it on held-out episodes first.

        Args:
            images: ``(S, C, H, W)`` float in [0, 1].
            labels: S class names or integers; their sorted distinct values are the classes.
            seed: of the routings that an ensemble draws.
            refine: a refinement, or its name: "frank_wolfe", "gradient", "risk_averse" or "dirichlet", with options as
                in "frank_wolfe:steps=3,max_active=2" or ``{"kind": "frank_wolfe", "steps": 3}``. It starts from the
                posterior's mean (its mode where the router decides by "map") with the deployed masks. None: the router
                alone.

        Returns:
            The task; the very same one when it is among the last that were asked for.

        Raises:
            ValueError: for images that are not usable, fewer than two classes, S labels that are not S, an unknown
                mode, or one that needs experts where there are none.
        """
        check_images(images, "support")
        values: list[Any] = labels.tolist() if isinstance(labels, Tensor) else list(labels)
        classes = tuple(sorted(set(values)))
        if len(values) != len(images):
            raise ValueError(f"got {len(images)} images and {len(values)} labels; expected one label an image")
        if len(classes) < 2:
            raise ValueError(f"the support has the one class {classes[0]!r}; expected at least two classes")
        expected = self.router.config.data
        if images.shape[1] != expected.channels:
            raise ValueError(f"images have {images.shape[1]} channels; this router was trained on {expected.channels}")
        mode = parse_refinement(refine) if isinstance(refine, str | Mapping) else refine
        if mode is not None and not isinstance(mode, RefinementMode):
            raise ValueError(f"refine is {refine!r}; expected a refinement, its name or table, or None")
        key = (support_digest(images, values), seed, mode)
        return self._tasks.get(key, lambda: self._adapt(images, values, classes, seed, mode))

    def cache_info(self) -> CacheInfo:
        """How often :meth:`adapt` found its task among the kept ones, and how many are kept."""
        return self._tasks.info()

    @torch.no_grad()
    def _adapt(
        self,
        images: Tensor,
        values: list[Any],
        classes: tuple[Any, ...],
        seed: int,
        mode: RefinementMode | None,
    ) -> AdaptedTask:
        names = tuple(str(c) for c in classes)
        target = torch.tensor([classes.index(v) for v in values])
        episode = Episode(Labelled(images, target), class_names=names)
        batch = EpisodeBatch.collate([episode]).to(self.router.device)
        batch = self.router.features().attach(batch)
        posterior = self.router.guide.posterior(batch)
        refinement = None
        if mode is not None:
            start = posterior.mode if isinstance(self.rule, Map) else posterior.mean
            refinement = mode.refine(self.router.model, self.deployed_basis, batch, start[0])
        return AdaptedTask(self, batch, posterior, names, seed, refinement)

    @property
    @torch.no_grad()
    def deployed_basis(self) -> Tensor:
        """The basis ``(C, d)`` with the deployed masks."""
        return self.bases[0] if not self.deployment.gate_samples else self.router.model.basis()


def _head_of(network: nn.Module, config: RunConfig) -> tuple[str, ...]:
    """Tensors that the config leaves out of the sources: they are the network's own, and saved with the router."""
    return tuple(name for name in network.state_dict() if matches(name, *config.sources.head))


def _own_class(made: nn.Module, reference: str | None) -> str | None:
    """What names a class of the user's own, None for the library's."""
    if type(made).__module__.startswith("pyro_smat."):
        return None
    return reference or type(made).__qualname__


def _network_of(router: Router) -> tuple[str, dict[str, object]]:
    if router.config.sources.files:
        return router.config.sources.network, dict(router.config.sources.options)
    name, options = GLYPH_NETWORK
    return name, dict(options)


def _read_description(path: Path) -> dict:
    if not path.is_file():
        raise ValueError(f"{path}: no such file; expected a folder that RoutedClassifier.save wrote")
    try:
        description = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(description, dict) or description.get("format") not in (3, FORMAT):
        found = description.get("format") if isinstance(description, dict) else type(description).__name__
        raise ValueError(f"{path}: format is {found!r}; this version reads format {FORMAT}")
    return description
