"""One RoutedClassifier, any number of threads: the answers of one thread, bit for bit."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import random
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from small_world import classifier_of, task_of
from torch import Tensor

from pyro_smat.inference.deployment.classifier import RoutedClassifier
from pyro_smat.inference.deployment.refinement.cache import TaskCache

THREADS = 8


@pytest.fixture(autouse=True)
def _frequent_switches() -> Iterator[None]:
    """Threads change places ten times more often than usual."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(5e-4)
    yield
    sys.setswitchinterval(interval)


def everything(router: RoutedClassifier, seed: int) -> tuple[Any, ...]:
    """What a user may ask of one task."""
    support, labels, queries = task_of(seed, way=2 + seed % 3)
    task = router.adapt(support, labels, seed=seed)
    refined = router.adapt(
        support,
        labels,
        seed=seed,
        refine="gradient:steps=2" if router.router.model.experts is not None else "frank_wolfe:steps=2",
    )
    return (
        task.predict_proba(queries),
        refined.predict_proba(queries),
        task.predict_proba(queries, "mean"),
        task.predict_sets(queries, 0.7),
        str(task.explain()),
        str(refined.explain()),
        task.uncertainty,
        task.abstains,
        task.routing_scores,
    )


def same(first: Any, second: Any) -> bool:
    if isinstance(first, tuple):
        return all(same(a, b) for a, b in zip(first, second, strict=True))
    return torch.equal(first, second) if isinstance(first, Tensor) else first == second


def in_threads(call: Callable[[int], Any], seeds: list[int]) -> list[Any]:
    """call(seed) for every seed, from eight threads that start at once."""
    barrier = threading.Barrier(THREADS)
    with ThreadPoolExecutor(THREADS, initializer=barrier.wait) as pool:
        return list(pool.map(call, seeds))


SCORES = ["variance", "kl_to_prior", "support_loss", "predictive_entropy", "disagreement", "composed_support_loss"]
FAMILIES = [
    ("guide.kind=logistic_normal", "experts.count=2"),
    pytest.param(("guide.kind=catalog", "experts.count=2"), marks=pytest.mark.slow),
    pytest.param(("guide.kind=dirichlet", "experts.count=0"), marks=pytest.mark.slow),
    pytest.param(("guide.kind=concrete", "experts.count=0"), marks=pytest.mark.slow),
    ("guide.kind=hierarchical", "experts.count=2", "decision.gate_samples=2"),
]


@pytest.mark.parametrize("overrides", FAMILIES, ids=lambda overrides: overrides[0].partition("=")[2])
def test_eight_threads_give_the_serial_answers(world: Path, overrides: tuple[str, ...]) -> None:
    seeds = list(range(3))
    serial = {seed: everything(classifier_of(world / "config.toml", *overrides, cache_size=0), seed) for seed in seeds}
    router = classifier_of(world / "config.toml", *overrides, cache_size=2)
    asked = random.Random(0).choices(seeds, k=8)
    for seed, found in zip(asked, in_threads(lambda seed: everything(router, seed), asked), strict=True):
        assert same(found, serial[seed])


@pytest.mark.parametrize("score", SCORES)
def test_one_task_asked_by_all_threads_at_once(world: Path, score: str) -> None:
    """Whatever a task computes when first asked is right, whoever asks first."""
    made = classifier_of(world / "config.toml")
    deployment = made.deployment.but(score=score, threshold=0.4)
    queries = task_of(0)[2]

    def ask(task: Any) -> tuple[Any, ...]:
        return task.uncertainty_on(queries), task.predict_proba(queries), str(task.explain())

    expected = ask(RoutedClassifier(made.router, deployment).adapt(*task_of(0)[:2]))
    for _ in range(3):
        task = RoutedClassifier(made.router, deployment, cache_size=0).adapt(*task_of(0)[:2])
        assert all(same(found, expected) for found in in_threads(lambda _, task=task: ask(task), list(range(THREADS))))


def test_two_routers_at_once(world: Path) -> None:
    config = world / "config.toml"
    routers = [classifier_of(config, cache_size=0), classifier_of(config, "guide.kind=catalog", cache_size=2)]
    serial = [[everything(router, seed) for seed in range(3)] for router in routers]
    found = in_threads(lambda n: everything(routers[n % 2], n // 2 % 3), list(range(12)))
    assert all(same(answer, serial[n % 2][n // 2 % 3]) for n, answer in enumerate(found))


def test_the_thread_pool_of_asyncio(classifier: RoutedClassifier) -> None:
    serial = [everything(classifier, seed) for seed in range(4)]

    async def serve() -> list[Any]:
        return await asyncio.gather(*(asyncio.to_thread(everything, classifier, n % 4) for n in range(12)))

    assert all(same(answer, serial[n % 4]) for n, answer in enumerate(asyncio.run(serve())))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_fork_after_load(classifier: RoutedClassifier) -> None:
    """A child that is forked while other threads predict answers as its parent, and does not hang."""
    expected, stop = everything(classifier, 1), threading.Event()

    def keep_busy() -> None:
        while not stop.is_set():
            everything(classifier, 2)

    busy = [threading.Thread(target=keep_busy) for _ in range(2)]
    for thread in busy:
        thread.start()
    try:
        context = multiprocessing.get_context("fork")
        for _ in range(3):
            receive, send = context.Pipe(duplex=False)
            child = context.Process(target=_answer, args=(classifier, send))
            child.start()
            assert receive.poll(60), "the child hangs"
            assert receive.recv() == expected[0].tolist()
            child.join(60)
            assert child.exitcode == 0
    finally:
        stop.set()
        for thread in busy:
            thread.join()


def _answer(classifier: RoutedClassifier, send: Any) -> None:
    torch.set_num_threads(1)
    send.send(everything(classifier, 1)[0].tolist())


def test_no_effect_handler_of_pyro_runs_in_a_prediction(
    classifier: RoutedClassifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pyro's stack of handlers is the process's: a program that another thread traces must not see our statements."""
    import pyro.poutine.runtime as runtime

    seen = []

    def note(message: Any) -> Any:
        seen.append(message["name"])
        return message

    monkeypatch.setattr(runtime, "apply_stack", note)
    serial = everything(classifier_of_copy(classifier), 3)
    assert seen == []
    monkeypatch.undo()
    from pyro import poutine

    with poutine.trace() as trace:
        traced = everything(classifier_of_copy(classifier), 3)
    assert same(traced, serial)
    assert len(trace.trace.nodes) == 0


def classifier_of_copy(classifier: RoutedClassifier) -> RoutedClassifier:
    """The same router without what the classifier has kept."""
    return RoutedClassifier(classifier.router, classifier.deployment, cache_size=0)


def test_a_cache_keeps_one_result_for_each_key() -> None:
    """Against a dict: whoever asks for a key gets its value, the same object for all who find it there."""
    cache: TaskCache[list[int]] = TaskCache(4)
    asked = random.Random(1).choices(range(6), k=4000)
    found = in_threads(lambda key: (key, cache.get(key, lambda: [key])), asked)
    assert all(value == [key] for key, value in found)
    info = cache.info()
    assert info.hits + info.misses == len(asked)
    assert info.current == 4
    serial: TaskCache[int] = TaskCache(2)  # the one that was not used for longest goes
    assert [serial.get(key, lambda key=key: key) for key in (1, 2, 1, 3)] == [1, 2, 1, 3]
    assert serial.get(1, lambda: -1) == 1
    assert serial.get(2, lambda: -1) == -1


@pytest.mark.slow
def test_eight_threads_and_a_thousand_predictions_each(world: Path) -> None:
    router = classifier_of(world / "config.toml", cache_size=4)
    tasks = [router.adapt(*task_of(seed)[:2]) for seed in range(8)]
    serial = [task.predict_proba(task_of(seed)[2]) for seed, task in enumerate(tasks)]
    found = in_threads(lambda n: tasks[n % 8].predict_proba(task_of(n % 8)[2]), list(range(8000)))
    assert all(torch.equal(answer, serial[n % 8]) for n, answer in enumerate(found))
