"""Checkpoint files in, aligned checkpoint files and a table out: what ``pyro-smat sources align`` does."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from pyro_smat.episodes.pool import ImagePool
from pyro_smat.files import replacing
from pyro_smat.networks.parameters import ParameterSpace
from pyro_smat.sources.alignment.activations import align_activations
from pyro_smat.sources.alignment.barrier import Loss, loss_along
from pyro_smat.sources.alignment.few_shot import FewShotLoss
from pyro_smat.sources.alignment.result import Alignment, State, align_all
from pyro_smat.sources.alignment.statistics import recompute_statistics
from pyro_smat.sources.alignment.trace import example_input, find_groups
from pyro_smat.sources.alignment.verify import check_groups
from pyro_smat.sources.alignment.weights import align_weights
from pyro_smat.sources.compatibility import open_all
from pyro_smat.sources.transformers_names import TransformersNames

POSITIONS = (0.0, 0.25, 0.5, 0.75, 1.0)

_CALIBRATION = 256


def align_files(
    module: nn.Module,
    files: Mapping[str, Path],
    output: Path,
    method: str = "weights",
    images: Tensor | None = None,
    pool: ImagePool | None = None,
    seed: int = 0,
    episodes: tuple[int, int, int] = (5, 5, 5),
) -> str:
    """Align checkpoints to the first of them, write ``output/<name>.safetensors`` for each, and describe the result.

    Groups are found in the module and put to the proof before anything is aligned. The first checkpoint is written as
    it is, so that the folder is a library of sources.

    Args:
        module: the network that all files fit.
        files: ``{"name": path}``, the reference first.
        output: folder to write to; made if missing.
        method: "weights" needs no data, "activations" needs images.
        images: ``(n, C, H, W)`` inputs to calibrate on, 100 or more are sensible; default: 256 of the pool. Without
            either the size of an input is guessed from the network.
        pool: labelled images; with them the table tells the few-shot loss barrier before and after, and, for networks
            with batch normalisation, the barrier with statistics measured anew at every point.
        seed: of the orders in which weight matching visits groups, and of the episodes.
        episodes: way, shots and queries a class of the episodes.

    Returns:
        The text of the table.

    Raises:
        ValueError: for an unknown method, activations without images, files that cannot be read or do not fit, a file
            that would be overwritten, a network without groups, or groups that fail their proof.
    """
    if method not in ("weights", "activations"):
        raise ValueError(f"method is {method!r}; expected 'weights' or 'activations'")
    if images is None and pool is not None:
        rows = torch.randperm(len(pool), generator=torch.Generator().manual_seed(seed))[:_CALIBRATION]
        images = pool.at(rows)
    if method == "activations" and images is None:
        raise ValueError("matching by activations needs images to run the networks on; give images or match by weights")
    targets = {name: output / f"{name}.safetensors" for name in files}
    for name, path in files.items():
        if Path(name).name != name:
            raise ValueError(f"source name {name!r} cannot name a file; expected a name without slashes")
        if any(Path(path).resolve() == target.resolve() for target in targets.values()):
            raise ValueError(f"{path} would be overwritten; choose another output folder than {output}")
    states: dict[str, State] = {
        name: {key: opened.read(key) for key in opened.names}
        for name, opened in open_all(files, naming=TransformersNames.of(module)).items()
    }
    space = ParameterSpace.from_module(module)
    if problems := [f"{name}: {line}" for name, state in states.items() for line in space.differences(state)]:
        raise ValueError("sources do not fit the network:\n  " + "\n  ".join(problems))

    example = example_input(module) if images is None else images[:2]
    groups = find_groups(module, example)
    check_groups(module, groups, example)
    if method == "weights":
        alignments = align_all(states, partial(align_weights, groups=groups, seed=seed))
    else:
        assert images is not None
        alignments = align_all(states, partial(align_activations, groups=groups, module=module, inputs=images))

    reference = next(iter(states))
    aligned: dict[str, State] = {reference: states[reference]}
    aligned |= {name: alignment.state for name, alignment in alignments.items()}
    lines = [alignment_table(name, reference, alignment) for name, alignment in alignments.items()]
    if pool is not None:
        assert images is not None
        way, shot, query = episodes
        loss = FewShotLoss(module, pool, way=way, shot=shot, query=query, seed=seed)
        lines.append(_barriers(loss, module, states, aligned, images))
    lines += [f"note: {note}" for note in groups.notes]
    for name, state in aligned.items():
        with replacing(targets[name]) as temporary:
            save_file({key: tensor.contiguous() for key, tensor in state.items()}, temporary)
    lines.append("written: " + ", ".join(str(target) for target in targets.values()))
    return "\n".join(lines) + "\n"


def alignment_table(name: str, reference: str, alignment: Alignment) -> str:
    """One line a group: units, share moved, similarity to the reference before and after; the distance below."""
    width = max(len(group.name) for group in alignment.groups)
    lines = [
        f"{name} aligned to {reference}",
        f"  {'group':{width}}  units  moved  similarity: before  after  by",
    ]
    lines += [
        f"  {g.name:{width}}  {g.size:5d}  {g.moved:5.0%}  {g.before:18.3f}  {g.after:5.3f}  {g.by}"
        for g in alignment.groups
    ]
    lines.append(
        f"  distance to {reference}: {alignment.distance_before:.4g} before, {alignment.distance_after:.4g} after\n"
    )
    return "\n".join(lines)


def _barriers(
    loss: FewShotLoss,
    module: nn.Module,
    states: Mapping[str, State],
    aligned: Mapping[str, State],
    calibration: Tensor,
) -> str:
    losses: dict[str, Loss] = {"as mixed": loss}
    if any(isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d) for part in module.modules()):
        losses["batch normalisation measured anew"] = lambda s: loss(recompute_statistics(module, s, calibration))
    reference, *others = states
    lines = [f"barrier of the few-shot loss to {reference}, nats, over {len(POSITIONS)} points"]
    for name in others:
        for kind, measured in losses.items():
            before, after = (
                loss_along(states[reference], side[name], measured, POSITIONS).barrier for side in (states, aligned)
            )
            lines.append(f"  {name}, {kind}: {before:.3f} before, {after:.3f} after")
    return "\n".join(lines) + "\n"
