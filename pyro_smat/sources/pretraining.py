"""Pretraining: makes sources, by plain prototypical training of one network on episodes.

This is what a user has done before pyro-smat starts: fine-tuned checkpoints of one backbone. It turns an EpisodeSampler
and a feature extractor into a trained feature extractor, and makes the five glyph checkpoints that ship with the
package: a generalist, and four specialists fine-tuned from it (so that they share a basin and mix linearly).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm

from pyro_smat.episodes import EpisodeBatch
from pyro_smat.episodes.pool import ImagePool
from pyro_smat.episodes.readers.glyphs import ATTRIBUTES, glyph_pool
from pyro_smat.episodes.sampler import EpisodeSampler
from pyro_smat.episodes.stream import EpisodeStream
from pyro_smat.files import replacing
from pyro_smat.networks import build_network
from pyro_smat.networks.heads import Metric, prototype_logits
from pyro_smat.registry import Choice, choose

GLYPH_NETWORK = {"kind": "conv4", "in_channels": 1, "channels": 32, "image_size": 32, "stem": "stride"}
GLYPH_STEPS = {"generalist": 1500, "letter": 1200, "face": 400, "rotation": 3000, "style": 100}


def glyph_choice() -> Choice:
    """What the shipped glyph sources are checkpoints of."""
    return choose("network", GLYPH_NETWORK)


def glyph_network() -> nn.Module:
    """The network of the shipped glyph sources, with initial weights of seed 0."""
    return build_network(glyph_choice(), generator=torch.Generator().manual_seed(0))


def pretrain[M: nn.Module](
    module: M,
    sampler: EpisodeStream,
    steps: int,
    *,
    episodes_per_step: int = 6,
    learning_rate: float = 2e-3,
    weight_decay: float = 1e-4,
    head_scale: float = 10.0,
    metric: Metric = "cosine",
    augment: Callable[[Tensor, torch.Generator], Tensor] | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
    bfloat16: bool = False,
    progress: str | None = None,
) -> M:
    r"""Train a feature extractor in place on episodes: mean query cross-entropy of the prototype head.

    Minimises :math:`-\log \mathrm{softmax}(s \cdot \mathrm{sim}(f_q, p))_{y_q}` with AdamW, a linear warm-up over the
    first 5% of the steps and a cosine decay to zero. Batch normalisation stays in evaluation mode: its running
    statistics are those of the given module, since episodes of few classes would distort them.

    Args:
        module: maps images ``(n, C, H, W)`` to features ``(n, f)``.
        sampler: where batches of episodes come from; it has its own generator.
        steps: optimiser steps.
        episodes_per_step: B episodes of each step.
        learning_rate: its highest value.
        weight_decay: of AdamW.
        head_scale: s, the factor between similarities and logits.
        metric: "cosine", "euclidean" or "bhattacharyya".
        augment: called with ``(B, n, C, H, W)`` images of support and queries together and a generator; must keep the
            classes of each episode apart, as :func:`turn_and_flip` does.
        seed: of the augmentation.
        device: where the module is moved to and trained.
        bfloat16: run the network in bfloat16 autocast (on CUDA); parameters, head and loss stay float32.
        progress: title of a progress bar, or None for none.

    Returns:
        The same module, in evaluation mode.

    Raises:
        ValueError: for non-positive steps, or when the loss becomes NaN or infinite.

    Example:
        >>> sampler = EpisodeSampler(glyph_pool("validation"), 3, 2, 2)
        >>> source = pretrain(build_network("conv4", channels=8), sampler, steps=2)
        >>> sorted(source.state_dict())[0]
        'blocks.0.0.bias'
    """
    if steps < 1:
        raise ValueError(f"steps is {steps}; expected at least 1")
    device = torch.device(device)
    module.to(device).to(memory_format=torch.channels_last).train()  # half again as fast on a CPU
    for layer in module.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            layer.eval()
    optimizer = torch.optim.AdamW(module.parameters(), lr=learning_rate, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _learning_rate_factor(step, steps))
    generator = torch.Generator().manual_seed(seed)
    bar = tqdm(range(steps), desc=progress, unit="step", disable=progress is None)
    for step in bar:
        batch = sampler.sample(episodes_per_step).to(device)
        logits = _query_logits(module, batch, head_scale, metric, augment, generator, bfloat16)
        losses = F.cross_entropy(logits.flatten(0, 1), batch.query.labels.flatten(), reduction="none")
        loss = (losses * batch.query.mask.flatten()).sum() / batch.query.mask.sum()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(module.parameters(), 5.0)
        optimizer.step()
        schedule.step()
        if step % 20 == 0 or step == steps - 1:
            value = loss.item()
            if not math.isfinite(value):
                raise ValueError(f"loss is {value} at step {step}; expected a finite value: lower learning_rate")
            bar.set_postfix(loss=f"{value:.3f}")
    return module.to(memory_format=torch.contiguous_format).eval()


def mirror(images: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror each episode as a whole, at random in either direction: four times as many letters at the same angles.

    Args:
        images: ``(B, n, C, H, W)``.
        generator: on the CPU.
    """
    draws = torch.randint(0, 2, (2, len(images), 1, 1, 1, 1), generator=generator).bool().to(images.device)
    images = torch.where(draws[0], images.flip(-1), images)
    return torch.where(draws[1], images.flip(-2), images)


def turn_and_flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """Turn and mirror each episode as a whole by one of the eight symmetries of the square.

    Images of one class stay together, so labels stay right, and eight times as many letters are seen.

    Args:
        images: ``(B, n, C, H, W)`` with H = W.
        generator: on the CPU.
    """
    draws = torch.randint(0, 8, (len(images),), generator=generator).tolist()
    return torch.stack(
        [
            torch.rot90(episode.flip(-1) if draw >= 4 else episode, draw % 4, (-2, -1))
            for episode, draw in zip(images, draws, strict=True)
        ]
    )


@torch.no_grad()
def source_accuracy(
    modules: Mapping[str, nn.Module],
    pool: ImagePool,
    *,
    episodes: int = 200,
    way: int = 5,
    shot: int = 5,
    query: int = 10,
    attributes: Sequence[str] | None = None,
    metric: Metric = "cosine",
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> dict[str, dict[str, float]]:
    """Query accuracy of every module on episodes of every attribute, ``{module: {attribute: fraction}}``.

    All modules see the same episodes; all attributes other than the label vary at random.

    Args:
        modules: feature extractors by name.
        pool: images to draw episodes from.
        episodes: episodes for each attribute. The standard error of a cell is about 0.15 / sqrt(episodes).
        way, shot, query: classes, and images of a class in support and queries.
        attributes: names of the pool's attributes to test; all by default.
        metric: of the prototype head.
        seed: of the sampler.
        device: where to compute.
    """
    table: dict[str, dict[str, float]] = {name: {} for name in modules}
    at_a_time = max(1, 300 // (way * (shot + query)))  # larger batches are slower on a CPU
    for attribute in attributes or pool.attributes:
        sampler = EpisodeSampler(pool, way, shot, query, attributes=(attribute,), seed=seed)
        right = dict.fromkeys(modules, 0.0)
        total = 0
        for start in range(0, episodes, at_a_time):
            batch = sampler.sample(min(at_a_time, episodes - start)).to(device)
            total += int(batch.query.mask.sum())
            for name, module in modules.items():
                guess = _query_logits(module.to(device).eval(), batch, 1.0, metric).argmax(-1)
                right[name] += ((guess == batch.query.labels) & batch.query.mask).sum().item()
        for name in modules:
            table[name][attribute] = right[name] / total
    return table


def make_glyph_sources(
    folder: str | Path,
    seed: int = 0,
    *,
    steps: Mapping[str, int] = GLYPH_STEPS,
    cache_dir: str | Path | None = None,
    device: torch.device | str = "cpu",
    progress: bool = True,
) -> dict[str, Path]:
    """Train the five glyph sources from nothing and save them: about 17 minutes of one CPU core.

    The generalist learns from episodes of all four attributes; each specialist goes on from it on its own attribute.

    Args:
        folder: where ``<name>.safetensors`` are written, with the network, its options, the attribute and the pixel
            range in the metadata.
        seed: of the initial weights, the episodes and the augmentation.
        steps: optimiser steps for "generalist" and for each attribute.
        cache_dir: of the rendered glyphs, see :func:`pyro_smat.episodes.readers.glyphs.glyph_pool`.
        device: where to train.
        progress: show a progress bar for each network.

    Returns:
        The paths, by source name.

    Raises:
        ValueError: when ``steps`` does not name exactly the five networks.
    """
    names = ("generalist", *ATTRIBUTES)
    if set(steps) != set(names):
        raise ValueError(f"steps names {sorted(steps)}; expected exactly {sorted(names)}")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    pool = glyph_pool("train", cache_dir=cache_dir)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = build_network(glyph_choice())
    start: dict[str, Tensor] = {}
    paths = {}
    for number, name in enumerate(names):
        if start:
            module.load_state_dict(start)
        attributes = ATTRIBUTES if name == "generalist" else (name,)
        sampler = EpisodeSampler(pool, 5, 5, 5, attributes=attributes, seed=seed + 1000 * number)
        title = f"pretraining {name}" if progress else None
        augment = turn_and_flip if name == "letter" else mirror
        pretrain(module, sampler, steps[name], augment=augment, seed=seed + number, device=device, progress=title)
        if name == "generalist":
            start = {key: value.clone() for key, value in module.state_dict().items()}
        paths[name] = folder / f"{name}.safetensors"
        metadata = {
            "network": str(GLYPH_NETWORK["kind"]),
            "options": json.dumps({key: value for key, value in GLYPH_NETWORK.items() if key != "kind"}),
            "attribute": ",".join(attributes),
            "pixel": "float32 grey in [0, 1]",
        }
        tensors = {key: value.cpu().contiguous() for key, value in module.state_dict().items()}
        with replacing(paths[name]) as temporary:
            save_file(tensors, temporary, metadata)
    return paths


def shipped_glyph_sources() -> dict[str, Path]:
    """Paths of the five checkpoints in the package, by source name; the generalist first."""
    folder = Path(str(files("pyro_smat.sources") / "glyphs"))
    return {name: folder / f"{name}.safetensors" for name in ("generalist", *ATTRIBUTES)}


def _query_logits(
    module: nn.Module,
    batch: EpisodeBatch,
    scale: float,
    metric: Metric,
    augment: Callable[[Tensor, torch.Generator], Tensor] | None = None,
    generator: torch.Generator | None = None,
    bfloat16: bool = False,
) -> Tensor:
    """Logits of the queries, ``(B, Q, W)``, of one network on a batch of episodes."""
    images = torch.cat([batch.support.images, batch.query.images], 1)
    if augment is not None and generator is not None:
        images = augment(images, generator)
    with torch.autocast(images.device.type, torch.bfloat16, enabled=bfloat16):
        features = module(images.flatten(0, 1))
    shots = batch.support.images.shape[1]
    support, query = features.float().unflatten(0, images.shape[:2]).tensor_split([shots], 1)
    return prototype_logits(support, batch.support.labels, batch.support.mask, query, batch.class_mask, scale, metric)


def _learning_rate_factor(step: int, steps: int) -> float:
    warm_up = max(1, steps // 20)
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up)))
