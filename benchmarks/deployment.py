"""What deployment costs against the plain networks on the same images, one CPU thread: adapt, predict, and a stream.

    python benchmarks/deployment.py --router runs/quickstart/router [--tasks 1000]

Without --router it trains the quickstart first. Times are CPU times of the one thread, so that other programs do not
count; medians over tasks, each taken in turns with the plain forwards that it is compared with.

- adapt: all R sources on the support, posterior, and the risk, against R plain forwards of the support;
- first predict: the distinct networks on support and queries, against as many plain forwards of both;
- later predict: on new queries, against as many plain forwards of these;
- stream: adapt_many from cached features and 25 queries a task, against the forwards of the networks that it runs.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import pandas as pd
import torch
from doubt import trained
from torch import Tensor, nn

from pyro_smat.episodes import EpisodeBatch
from pyro_smat.inference.deployment.classifier import RoutedClassifier
from pyro_smat.inference.runs.pools import build_pool

SEED = 5_000_011
Row = dict[str, str | float]
CONDITIONS: dict[str, list[object]] = {"clean": [], "confounded": ["confounding"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--router", type=Path, help="folder of a trained glyph router")
    parser.add_argument("--tasks", type=int, default=1000, help="of the stream")
    parser.add_argument("--timed", type=int, default=30, help="tasks that adapt and predict are timed on")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    folder = asked.router or trained(Path(tempfile.mkdtemp()))
    classifier = RoutedClassifier.load(folder, cache_size=0)
    plain = [_plain(classifier, row) for row in classifier.router.model.source_basis]
    rows = [row for name in CONDITIONS for row in _one_by_one(classifier, plain, name, asked.timed)]
    rows.append(_stream(classifier, plain[0], asked.tasks))
    print(pd.DataFrame(rows).to_string(index=False, float_format=lambda x: f"{x:.2f}"))


def _one_by_one(classifier: RoutedClassifier, plain: list[nn.Module], condition: str, count: int) -> list[Row]:
    """Rows "adapt", "first predict" and "later predict"."""
    batch = _episodes(classifier, condition, count)
    times: dict[str, list[float]] = {}
    networks = []
    for i in range(count):
        support, labels, query = batch.support.images[i], batch.support.labels[i], batch.query.images[i]
        both = torch.cat([support, query])
        times.setdefault("R plain", []).append(_ms(_forwards, plain, support))
        start = time.thread_time()
        task = classifier.adapt(support, labels)
        _ = task.abstains
        times.setdefault("adapt", []).append(1e3 * (time.thread_time() - start))
        times.setdefault("first", []).append(_ms(task.predict_proba, query))
        networks.append(task.explain().networks)
        used = plain[: networks[-1]]
        times.setdefault("plain first", []).append(_ms(_forwards, used, both))
        times.setdefault("later", []).append(_ms(task.predict_proba, query))
        times.setdefault("plain later", []).append(_ms(_forwards, used, query))
    return [
        _row(f"adapt, {condition}", times["adapt"], times["R plain"], len(plain), "1.1 x + 3 ms"),
        _row(f"first predict, {condition}", times["first"], times["plain first"], statistics.mean(networks), "1.3 x"),
        _row(f"later predict, {condition}", times["later"], times["plain later"], statistics.mean(networks), "1.3 x"),
    ]


def _stream(classifier: RoutedClassifier, plain: nn.Module, count: int) -> Row:
    """Clean tasks from cached features to predictions, and the forwards of their networks on support and queries."""
    pool = build_pool(classifier.router.config, "test")
    features = classifier.router.features(pool)
    batch = _episodes(classifier, "clean", count)
    features.attach(batch[:1])  # the pool is embedded at the first use
    start, networks, forwards = time.thread_time(), 0, 0.0
    tasks = classifier.adapt_many([batch], features=features)
    for i, task in enumerate(tasks):
        task.predict_proba(batch.query.images[i])
        paused = time.thread_time()
        used = task.explain().networks
        both = torch.cat([batch.support.images[i], batch.query.images[i]])
        forwards += _ms(_forwards, [plain] * used, both)
        networks += used
        start += time.thread_time() - paused  # the forwards, taken in turns, are not the stream's
    total = 1e3 * (time.thread_time() - start)
    return _row(f"stream of {count:,} tasks, each", [total / count], [forwards / count], networks / count, "2 x")


def _row(what: str, ours: list[float], plain: list[float], forwards: float, target: str) -> Row:
    ratio = statistics.median(a / b for a, b in zip(ours, plain, strict=True))
    mine, theirs = statistics.median(ours), statistics.median(plain)
    return {
        "what": what,
        "ms": mine,
        "plain forwards": forwards,
        "their ms": theirs,
        "ratio": ratio,
        "target": target,
    }


@torch.no_grad()
def _ms(call: Callable[..., object], *arguments: object) -> float:
    start = time.thread_time()
    call(*arguments)
    return 1e3 * (time.thread_time() - start)


def _forwards(networks: list[nn.Module], images: Tensor) -> None:
    for network in networks:
        network(images)


def _plain(classifier: RoutedClassifier, row: Tensor) -> nn.Module:
    """The network as its author has it, with the weights of a source."""
    network = deepcopy(classifier.router.network).eval()
    network.load_state_dict(classifier.router.library.space.unflatten(row), strict=False)
    return network


def _episodes(classifier: RoutedClassifier, condition: str, count: int) -> EpisodeBatch:
    pool = build_pool(classifier.router.config, "test")
    return classifier.router.config.episodes.sampler(pool, seed=SEED, corruptions=CONDITIONS[condition]).sample(count)


if __name__ == "__main__":
    main()
