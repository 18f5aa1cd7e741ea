r"""A universal network, distilled from the specialists of the suite: one network that is near each on its domain.

    python benchmarks/evidence/universal.py --data data/suite --sources data/suite/sources --seed 0

Writes ``SOURCES/seed0/universal.safetensors``. From ImageNet's weights, on episodes of one domain after the other,

.. math::
    -\log p(y) + \mathrm{KL}(p_\mathrm{specialist} \| p) + 1 - \mathrm{CKA}(F_\mathrm{specialist}, A_d F)

with a linear map A of the features for each domain, which is dropped afterwards; the two terms of distillation fade to
zero. Source: Li, Liu and Bilen 2021, "Universal Representation Learning from Multiple Domains for Few-shot
Classification" (URL), section 3.2, with linear CKA. Four minutes on an H200.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from safetensors.torch import save_file
from sources import QUERY, SHOT, WAY
from suite import TRAINED, load_split
from torch import Tensor, nn
from torch.nn import functional as F

from pyro_smat.episodes import EpisodeBatch, EpisodeSampler
from pyro_smat.inference.assembly.router import choose_device
from pyro_smat.networks import build_network
from pyro_smat.networks.heads import prototype_logits
from pyro_smat.sources import load_weights
from pyro_smat.sources.pretraining import mirror

UNIVERSAL, SCALE, EPISODES = "universal", 10.0, 6


def cka(x: Tensor, y: Tensor) -> Tensor:
    """Linear centred kernel alignment of features ``(n, f)`` and ``(n, g)``, in [0, 1].

    Source: Kornblith et al. 2019, "Similarity of Neural Network Representations Revisited", eq. 3 with linear kernels.

    Example:
        >>> x = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
        >>> cka(x, 3 * x.flip(-1) + 1)
        tensor(1.)
    """
    x, y = x - x.mean(0), y - y.mean(0)
    inner = (x @ x.mT * (y @ y.mT)).sum()
    return inner / ((x @ x.mT).norm() * (y @ y.mT).norm()).clamp(min=1e-12)


def distil(
    student: nn.Module,
    teachers: dict[str, nn.Module],
    samplers: dict[str, EpisodeSampler],
    steps: int,
    learning_rate: float,
    device: torch.device,
    seed: int,
) -> None:
    """Train the student in place; domains take turns."""
    generator = torch.Generator().manual_seed(seed)
    student.to(device).train()
    for network in (student, *teachers.values()):
        network.to(device)
        for layer in network.modules():
            if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                layer.eval()
    maps: dict[str, Tensor] = {}
    optimizer = torch.optim.AdamW(student.parameters(), lr=learning_rate, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(steps):
        domain = list(teachers)[step % len(teachers)]
        batch = samplers[domain].sample(EPISODES).to(device)
        images = mirror(torch.cat([batch.support.images, batch.query.images], 1), generator)
        shots = batch.support.images.shape[1]
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            with torch.no_grad():
                theirs = teachers[domain](images.flatten(0, 1))
            ours = student(images.flatten(0, 1))
        theirs, ours = theirs.float(), ours.float()
        if domain not in maps:
            maps[domain] = torch.eye(ours.shape[-1], theirs.shape[-1], device=device).requires_grad_()
            optimizer.add_param_group({"params": [maps[domain]], "lr": learning_rate})
            schedule.base_lrs.append(learning_rate)
        logits = [_logits(f.unflatten(0, images.shape[:2]), shots, batch) for f in (ours, theirs)]
        ce = F.cross_entropy(logits[0].flatten(0, 1), batch.query.labels.flatten())
        kl = F.kl_div(*(part.flatten(0, 1).log_softmax(-1) for part in logits), reduction="batchmean", log_target=True)
        loss = ce + (1 - step / steps) * (kl + 1 - cka(theirs, ours @ maps[domain]))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(student.parameters(), 5.0)
        optimizer.step()
        schedule.step()


def _logits(features: Tensor, shots: int, batch: EpisodeBatch) -> Tensor:
    support = batch.support
    return prototype_logits(
        features[:, :shots],
        support.labels,
        support.mask,
        features[:, shots:],
        batch.class_mask,
        scale=SCALE,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data/suite"))
    parser.add_argument("--sources", type=Path, default=Path("data/suite/sources"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=1200, help="As many as the generalist takes.")
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()
    folder, device = arguments.sources / f"seed{arguments.seed}", choose_device(arguments.device)
    teachers = {}
    for name in TRAINED:
        teachers[name] = build_network("mobilenet_v2")
        teachers[name].load_state_dict(load_weights(folder / f"{name}.safetensors"))
    student = build_network("mobilenet_v2")
    student.load_state_dict(load_weights(arguments.data / "mobilenet_v2.safetensors"))
    samplers = {
        name: EpisodeSampler(
            load_split(arguments.data, "sources", (name,)),
            WAY,
            SHOT,
            QUERY,
            seed=arguments.seed,
            skip_small_classes=True,
        )
        for name in TRAINED
    }
    distil(student, teachers, samplers, arguments.steps, arguments.learning_rate, device, arguments.seed)
    weights = {k: v.cpu().contiguous() for k, v in student.state_dict().items()}
    target = folder / f"{UNIVERSAL}.safetensors"
    save_file({k: v.half() if v.is_floating_point() else v for k, v in weights.items()}, target)
    print(target, flush=True)


if __name__ == "__main__":
    main()
