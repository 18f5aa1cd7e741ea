"""Private routing on the suite: accuracy and loss against epsilon, beside what needs no private data at all.

    python benchmarks/evidence/data.py --out data/suite
    python benchmarks/evidence/sources.py --data data/suite --out data/suite/sources --seed 0    # and 1, 2
    python benchmarks/evidence/private.py --data data/suite --cache runs/private

The support's evidence is released by the Gaussian mechanism (docs/privacy.md), the predictions of the six sources are
averaged with weights that are functions of the release. Scales and clip of the evidence, how far it is trusted at each
epsilon, and the temperature of the average that is not private are chosen on the "validation" classes of the trained
domains by accuracy, with noise. Tested on the "test" classes: 5 shots on all eight domains, and 20 shots on the three
that have as many images (unseen ones). 5-way, 7 queries a class. Features are embedded once into CACHE (25,000 images
under 18 networks: a quarter of an hour on one CPU core), the rest takes as long again. Needs dp-accounting:
pip install 'pyro-smat[privacy]'.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from suite import SOURCES, TRAINED, UNSEEN, load_pool
from torch import Tensor

from pyro_smat.encoders.gaussian_mechanism import noise_multiplier
from pyro_smat.encoders.private_evidence import PrivateEvidence
from pyro_smat.episodes import EpisodeBatch, EpisodeSampler
from pyro_smat.inference.objective.reference import PRETRAINED_SCALE, support_losses
from pyro_smat.metrics.intervals import episode_interval
from pyro_smat.networks import build_network
from pyro_smat.networks.heads import prototype_logits
from pyro_smat.sources import load_weights

WAY, QUERY, DELTA = 5, 7, 1e-5
EPSILONS = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, math.inf)
TRUSTS = (0.0, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
TEMPERATURES = (0.1, 0.3, 1.0, 3.0)
BLOCKS: Mapping[str, tuple[tuple[str, ...], int]] = {
    "new classes, 5-shot": (TRAINED, 5),
    "unseen domains, 5-shot": (UNSEEN, 5),
    "three unseen domains, 20-shot": (("aenigma", "fashion", "mnist"), 20),
}
EQUAL, LOSS = "equal weights: nothing of the support is read", "weighted by support loss, not private"
Numbers = NDArray[np.float64]


def features_of(cache: Path, data: Path, sources: Path, seed: int, domain: str, split: str) -> Tensor:
    """``(N, R, f)`` of a domain's split, from the cache where they are there."""
    path = cache / f"seed{seed}" / f"{domain}-{split}.safetensors"
    if not path.exists():
        pool, columns = load_pool(data, domain, split), []
        for name in SOURCES:
            network = build_network("mobilenet_v2").eval()
            weights = load_weights(sources / f"seed{seed}" / f"{name}.safetensors")
            network.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in weights.items()})
            with torch.inference_mode():
                columns.append(torch.cat([network(pool.at(part)) for part in torch.arange(len(pool)).split(64)]))
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({"features": torch.stack(columns, 1).half()}, path)
    return load_file(path)["features"].float()


def episodes(pool_of: tuple[Path, str, str], table: Tensor, shot: int, count: int, seed: int) -> Iterator[EpisodeBatch]:
    """Batches with features of supports and queries."""
    sampler = EpisodeSampler(load_pool(*pool_of), WAY, shot, QUERY, seed=seed, skip_small_classes=True)
    for start in range(0, count, 16):
        batch = sampler.sample(min(16, count - start))
        query = replace(batch.query, features=table[batch.query.rows].transpose(1, 2))
        yield replace(batch.with_features(table[batch.support.rows].transpose(1, 2)), query=query)


def probabilities(batch: EpisodeBatch) -> Tensor:
    """``(B, R, Q, W)`` of every source by itself."""
    assert batch.support.features is not None
    assert batch.query.features is not None
    labels, mask = (part.unsqueeze(1) for part in (batch.support.labels, batch.support.mask))
    classes = batch.class_mask.unsqueeze(1)
    logits = prototype_logits(batch.support.features, labels, mask, batch.query.features, classes, PRETRAINED_SCALE)
    return logits.softmax(-1)


def scored(weights: Tensor, each: Tensor, batch: EpisodeBatch) -> tuple[Numbers, Numbers]:
    """Accuracy and loss ``(B,)`` of the predictions averaged with weights ``(B, R)``."""
    mixed = (weights.to(each)[..., None, None] * each).sum(1)
    right = (mixed.argmax(-1) == batch.query.labels).double().mean(-1)
    loss = -mixed.gather(-1, batch.query.labels.unsqueeze(-1)).squeeze(-1).clamp(min=1e-12).log().double().mean(-1)
    return right.numpy(), loss.numpy()


def choose(evidence: Sequence[Tensor], deviation: float, public: Sequence[tuple[EpisodeBatch, Tensor]]) -> float:
    """The trust of the highest accuracy on public episodes, under noise of this standard deviation.

    By loss, any weights that differ would be preferred: an average of six is less sure of itself than it could be.
    """
    generator = torch.Generator().manual_seed(0)
    noisy = [e + deviation * torch.randn(e.shape, generator=generator, dtype=e.dtype) for e in evidence]

    def accuracy(trust: float) -> float:
        parts = zip(noisy, public, strict=True)
        return float(np.concatenate([scored((trust * e).softmax(-1), p, b)[0] for e, (b, p) in parts]).mean())

    return max(TRUSTS, key=accuracy)


def run_block(
    arguments: argparse.Namespace, seed: int, domains: tuple[str, ...], shot: int
) -> dict[str, list[tuple[Numbers, Numbers]]]:
    """Method -> accuracy and loss of every domain."""
    places = arguments.cache, arguments.data, arguments.sources, seed
    public, few = [], min(shot, 5)  # validation classes have no 20 shots; the noise is that of the tasks all the same
    for domain in TRAINED:
        table = features_of(*places, domain, "validation")
        drawn = episodes((arguments.data, domain, "validation"), table, few, arguments.public, 17)
        public += [(batch, probabilities(batch)) for batch in drawn]
    batches = [batch for batch, _ in public]
    base = PrivateEvidence.on_public(batches, epsilon=math.inf, delta=DELTA, most_shots=shot + 1)
    mechanisms = {epsilon: replace(base, epsilon=epsilon) for epsilon in EPSILONS}
    evidence = [replace(base, most_shots=few + 1).statistic(batch) for batch in batches]
    spread = {epsilon: base.sensitivity(WAY * shot) * noise_multiplier(epsilon, DELTA) for epsilon in EPSILONS}
    trusts = {epsilon: choose(evidence, spread[epsilon], public) for epsilon in EPSILONS}
    temperature = max(
        TEMPERATURES,
        key=lambda t: np.concatenate([scored((-support_losses(b) / t).softmax(-1), p, b)[0] for b, p in public]).mean(),
    )
    found: dict[str, list[tuple[Numbers, Numbers]]] = {}
    noise = torch.Generator().manual_seed(1000 + seed)
    for domain in domains:
        table = features_of(*places, domain, "test")
        rows: dict[str, list[tuple[Numbers, Numbers]]] = {}
        for batch in episodes((arguments.data, domain, "test"), table, shot, arguments.episodes, 23):
            each = probabilities(batch)
            weights = {EQUAL: torch.ones(len(batch), len(SOURCES)) / len(SOURCES)}
            for epsilon, mechanism in mechanisms.items():
                weights[f"epsilon {epsilon:g}"] = (trusts[epsilon] * mechanism.release(batch, noise).evidence).softmax(
                    -1
                )
            weights[LOSS] = (-support_losses(batch) / temperature).softmax(-1)
            for name, w in weights.items():
                rows.setdefault(name, []).append(scored(w, each, batch))
        for name, parts in rows.items():
            accuracy, loss = (np.concatenate([part[k] for part in parts]) for k in (0, 1))
            found.setdefault(name, []).append((accuracy, loss))
    print(f"seed {seed}, {shot} shots: clip {base.clip:.2f}, T {temperature:g}, trust {trusts}", flush=True)
    return found


def row(name: str, per_seed: Sequence[list[tuple[Numbers, Numbers]]]) -> str:
    """Mean over domains and seeds with intervals over episodes, which seeds share."""
    cells = []
    for kind, factor, digits in ((0, 100.0, 1), (1, 1.0, 3)):
        values = factor * np.stack([[domain[kind] for domain in seed] for seed in per_seed]).mean((0, 1))
        interval = episode_interval(values)
        half = (interval.high - interval.low) / 2
        cells.append(f"{interval.value:.{digits}f} ± {half:.{digits}f}")
    return f"| {name} | {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data/suite"))
    parser.add_argument("--sources", type=Path, help="default: DATA/sources")
    parser.add_argument("--cache", type=Path, default=Path("runs/private"))
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--episodes", type=int, default=200, help="of each domain")
    parser.add_argument("--public", type=int, default=96, help="validation episodes of each trained domain")
    arguments = parser.parse_args()
    arguments.sources = arguments.sources or arguments.data / "sources"
    seeds = [int(seed) for seed in arguments.seeds.split(",")]
    for title, (domains, shot) in BLOCKS.items():
        found = [run_block(arguments, seed, domains, shot) for seed in seeds]
        print(f"\n| {title}, delta {DELTA:g} | accuracy % | loss, nats |\n|---|---|---|")
        for name in found[0]:
            print(row(name, [one[name] for one in found]), flush=True)


if __name__ == "__main__":
    main()
