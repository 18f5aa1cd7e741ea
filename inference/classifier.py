"""RoutedClassifier: a trained router as a folder, and what a user does with it.

``RoutedClassifier.load(folder).adapt(images, labels).predict_proba(new_images)``. The folder holds router.safetensors
and router.json; nothing in it is executed or unpickled.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn

from pyro_smat.composition import compose
from pyro_smat.config import build_config
from pyro_smat.episodes import Episode, EpisodeBatch, check_images
from pyro_smat.guides.posterior import RoutingPosterior
from pyro_smat.heads import prototype_logits
from pyro_smat.inference.assembly import Router, build_router, choose_device
from pyro_smat.inference.checkpoint import write_atomically
from pyro_smat.inference.decision import Rule, routings
from pyro_smat.inference.explanation import Component, Explanation
from pyro_smat.inference.sources import support_losses
from pyro_smat.networks import build_network
from pyro_smat.parameters import ParameterSpace
from pyro_smat.pretraining import GLYPH_NETWORK
from pyro_smat.routing import Catalog
from pyro_smat.sources import SourceLibrary, load_weights

FORMAT = 2


@dataclass(frozen=True)
class AbstentionRule:
    """Abstain when the score of a support set exceeds the threshold.

    Attributes:
        score: "confidence", "entropy", "variance" or "support loss".
        threshold: eta; infinity never abstains.
        coverage: the share of validation episodes that the threshold accepted.
    """

    score: str = "entropy"
    threshold: float = float("inf")
    coverage: float = 1.0


class RoutedClassifier:
    """A trained router, ready to adapt to tasks.

    Args:
        router: model and guide.
        abstention: when to fall back to source 0.

    A router of a network that :func:`~pyro_smat.networks.build_network` does not know can be saved too; pass the
    template to :meth:`load`.
    """

    def __init__(self, router: Router, abstention: AbstentionRule = AbstentionRule()) -> None:
        self.router = router
        self.abstention = abstention
        router.model.eval()
        router.guide.eval()
        masks = router.config.decision.masks
        generator = torch.Generator(device=router.device).manual_seed(router.config.seed)
        with torch.no_grad():  # (m, C, d): one basis, or one for every sample of the experts' gates
            self._bases = router.model.basis(masks, generator) if masks else router.model.basis().unsqueeze(0)

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
            "abstention": {
                "score": self.abstention.score,
                "threshold": None if self.abstention.threshold == float("inf") else self.abstention.threshold,
                "coverage": self.abstention.coverage,
            },
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
    ) -> RoutedClassifier:
        """Open what :meth:`save` wrote.

        Args:
            folder: with router.safetensors and router.json.
            device: "auto", "cpu" or "cuda".
            network: the template, when it is not one of the built-in networks.
            model_class, guide_class: the classes of a router that was trained with classes of the user's own; loading
                never runs a file that the folder names.

        Raises:
            ValueError: for missing, truncated or foreign files, or classes that were not passed.
        """
        folder = Path(folder)
        description = _read_description(folder / "router.json")
        tensors = load_weights(folder / "router.safetensors")
        config = build_config(description["config"])
        for what, given in (("model", model_class), ("guide", guide_class)):
            own = description["own_classes"][what]
            if own is not None and given is None:
                raise ValueError(
                    f"{folder}: was trained with a {what} of your own, {own}; pass {what}_class= that class "
                    f"(command line: --{what} {own})"
                )
        module = network or build_network(description["network"], **description["network_options"])
        space = ParameterSpace.from_module(module, config.sources.blocks or None)
        if "sources" not in tensors or tensors["sources"].shape != (len(description["source_names"]), space.dim):
            found = tuple(tensors["sources"].shape) if "sources" in tensors else "missing"
            raise ValueError(
                f"{folder}: sources are {found}; expected ({len(description['source_names'])}, {space.dim}) for "
                f"network {description['network']!r}"
            )
        library = SourceLibrary(tuple(description["source_names"]), tensors.pop("sources"), space)
        where = choose_device(device) if isinstance(device, str) else device
        names = description["catalog"]
        if names is not None and "catalog" not in tensors:
            raise ValueError(
                f"{folder}: the catalog of {len(names)} routings is missing; expected it beside the sources"
            )
        catalog = None if names is None else Catalog(tensors.pop("catalog"), tuple(names))
        router = build_router(
            config, where, (module, library), catalog=catalog, model_class=model_class, guide_class=guide_class
        )
        for part, target in (("model", router.model), ("guide", router.guide)):
            state = {k.removeprefix(f"{part}."): v for k, v in tensors.items() if k.startswith(f"{part}.")}
            try:
                target.load_state_dict(state)
            except RuntimeError as error:
                raise ValueError(f"{folder}: the saved {part} does not fit its config ({error})") from error
        saved = description["abstention"]
        threshold = float("inf") if saved["threshold"] is None else saved["threshold"]
        return cls(router, AbstentionRule(saved["score"], threshold, saved["coverage"]))

    @torch.no_grad()
    def adapt(self, images: Tensor, labels: Sequence[str] | Sequence[int] | Tensor, *, seed: int = 0) -> AdaptedTask:
        """Route a labelled support set.

        Args:
            images: ``(S, C, H, W)`` float in [0, 1].
            labels: S class names or integers; their sorted distinct values are the classes.
            seed: of the routings that an ensemble draws.

        Raises:
            ValueError: for images that are not usable, fewer than two classes, or S labels that are not S.
        """
        check_images(images, "support")
        values = labels.tolist() if isinstance(labels, Tensor) else list(labels)
        classes = tuple(sorted(set(values)))
        if len(values) != len(images):
            raise ValueError(f"got {len(images)} images and {len(values)} labels; expected one label an image")
        if len(classes) < 2:
            raise ValueError(f"the support has the one class {classes[0]!r}; expected at least two classes")
        expected = self.router.config.data
        if images.shape[1] != expected.channels:
            raise ValueError(f"images have {images.shape[1]} channels; this router was trained on {expected.channels}")
        names = tuple(str(c) for c in classes)
        target = torch.tensor([classes.index(v) for v in values])
        episode = Episode(images, target, images[:1], target[:1], len(classes), names)
        batch = EpisodeBatch.collate([episode]).to(self.router.device)
        batch = self.router.features().attach(batch)
        return AdaptedTask(self, batch, self.router.guide.posterior(batch), names, seed)


class AdaptedTask:
    """One routed task.

    Attributes:
        posterior: q(c | S), batch size 1.
        classes: class names, in the order of the columns of :meth:`predict_proba`.
    """

    def __init__(
        self,
        owner: RoutedClassifier,
        batch: EpisodeBatch,
        posterior: RoutingPosterior,
        classes: tuple[str, ...],
        seed: int,
    ) -> None:
        self._owner, self._batch, self._seed = owner, batch, seed
        self.posterior, self.classes = posterior, classes
        self._composed: dict[str, tuple[Tensor, Tensor, Tensor]] = {}

    @property
    def uncertainty(self) -> float:
        """U(S), by the score of the abstention rule."""
        score = self._owner.abstention.score
        if score == "support loss":
            return float(support_losses(self._batch, self._owner.router.model.metric).amin())
        generator = torch.Generator(device=self._batch.way.device).manual_seed(self._seed)
        return float(self.posterior.uncertainty(score, generator=generator))  # type: ignore[arg-type]

    @property
    def abstains(self) -> bool:
        """Whether U(S) exceeds the threshold; predictions then come from the fallback, source 0."""
        return self.uncertainty > self._owner.abstention.threshold

    @torch.no_grad()
    def predict_proba(self, images: Tensor, rule: Rule | None = None) -> Tensor:
        """Class probabilities ``(n, W)``.

        Args:
            images: ``(n, C, H, W)`` float in [0, 1].
            rule: a decision rule; default: the router's own, or the fallback when the task abstains.

        Raises:
            ValueError: for images that are not usable or of another size than the support.
        """
        check_images(images, "query")
        if images.shape[1:] != self._batch.support_images.shape[2:]:
            raise ValueError(
                f"images are {tuple(images.shape[1:])}; the support is {tuple(self._batch.support_images.shape[2:])}"
            )
        config, model = self._owner.router.config.decision, self._owner.router.model
        theta, support, weights = self._compose(rule or ("fallback" if self.abstains else config.rule))
        images = images.to(theta.device)
        queries = model.network(theta, images.expand(len(theta), *images.shape)).float()
        batch = self._batch
        logits = prototype_logits(
            support, batch.support_labels, batch.support_mask, queries, batch.class_mask, model.scale, model.metric
        )
        return (weights.view(-1, 1, 1) * logits.softmax(-1)).sum(0).cpu()

    def predict(self, images: Tensor, rule: Rule | None = None) -> list[str]:
        """Class names of images ``(n, C, H, W)``."""
        return [self.classes[k] for k in self.predict_proba(images, rule).argmax(-1).tolist()]

    @torch.no_grad()
    def explain(self) -> Explanation:
        """Which sources and experts, how sure, and what it costs."""
        router = self._owner.router
        draws = self.posterior.sample(512, torch.Generator(device=self._batch.way.device).manual_seed(self._seed))[:, 0]
        mean = self.posterior.mean[0]
        if self.posterior.blocks > 1:  # a block counts by its share of the coordinates
            share = torch.tensor(router.library.space.block_sizes, device=mean.device).to(mean)
            share = (share / share.sum()).unsqueeze(-1)
            draws, mean = (draws * share).sum(-2), (mean * share).sum(-2)
        low, high = torch.quantile(draws, torch.tensor([0.05, 0.95], device=draws.device), dim=0)
        names = (*router.library.names, *(f"expert {m}" for m in range(self.posterior.experts)))
        sizes = [router.library.space.dim] * self.posterior.sources
        if router.model.experts is not None:
            sizes += router.model.experts.masks().sum(-1).tolist()
        parts = tuple(
            Component(name, float(mean[i]), float(low[i]), float(high[i]), int(sizes[i]))
            for i, name in enumerate(names)
        )
        rule: Rule = "fallback" if self.abstains else router.config.decision.rule
        return Explanation(
            components=parts,
            score=self._owner.abstention.score,
            uncertainty=self.uncertainty,
            threshold=self._owner.abstention.threshold,
            abstains=self.abstains,
            rule=rule,
            networks=len(self._compose(rule)[2]),
            parameters=router.library.space.dim,
        )

    def _compose(self, rule: Rule) -> tuple[Tensor, Tensor, Tensor]:
        """Task parameters ``(K, d)``, support features ``(K, S, f)`` and weights ``(K,)`` of a rule, composed once."""
        if rule not in self._composed:
            router, batch = self._owner.router, self._batch
            config = router.config.decision
            generator = torch.Generator(device=batch.way.device).manual_seed(self._seed)
            coefficients, weights = routings(self.posterior, rule, config.draws, config.k, generator)
            bases, space = self._owner._bases, router.library.space
            theta = torch.cat([compose(coefficients[:, 0], basis, space) for basis in bases])
            weights = weights.repeat(len(bases), 1) / len(bases)
            images = batch.support_images[0]
            support = router.model.network(theta, images.expand(len(theta), *images.shape)).float()
            self._composed[rule] = theta, support, weights[:, 0]
        return self._composed[rule]


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
    if not isinstance(description, dict) or description.get("format") != FORMAT:
        found = description.get("format") if isinstance(description, dict) else type(description).__name__
        raise ValueError(f"{path}: format is {found!r}; this version reads format {FORMAT}")
    return description
