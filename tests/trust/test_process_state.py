"""PyTorch's and Pyro's switches belong to the process: nothing here depends on them, and nothing here changes them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pytest
import torch
from small_world import classifier_of, task_of
from torch import Tensor, nn

from pyro_smat.inference.assembly.config import load_config
from pyro_smat.inference.assembly.defaults import own_defaults
from pyro_smat.inference.assembly.router import build_router
from pyro_smat.inference.deployment.adapted_task import AdaptedTask
from pyro_smat.inference.deployment.classifier import RoutedClassifier
from pyro_smat.inference.runs.train import train_router
from pyro_smat.inference.training.trainer import MetaTrainer
from pyro_smat.sources.alignment import align_activations, find_groups


def state() -> dict[str, Any]:
    """Everything of the process that a library may be tempted to set."""
    return {
        "dtype": torch.get_default_dtype(),
        "device": torch.get_default_device(),
        "threads": torch.get_num_threads(),
        "gradients": torch.is_grad_enabled(),
        "inference": torch.is_inference_mode_enabled(),
        "fast path": torch.backends.mha.get_fastpath_enabled(),
        "flash": torch.backends.cuda.flash_sdp_enabled(),
        "memory-efficient": torch.backends.cuda.mem_efficient_sdp_enabled(),
        "math": torch.backends.cuda.math_sdp_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "matmul": torch.get_float32_matmul_precision(),
        "torch": torch.get_rng_state().tolist(),
        "numpy": str(np.random.get_state(legacy=True)),  # noqa: NPY002 (the user's legacy generator)
        "pyro": {name: pyro.settings.get(name) for name in pyro.settings.get()},
        "parameters": sorted(pyro.get_param_store().keys()),
        "validation": torch.distributions.Distribution._validate_args,
    }


def life(run: Path, data: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, ...]:
    """Load, adapt, predict, refine, explain."""
    router = RoutedClassifier.load(run / "router")
    support, labels, queries = data
    task = router.adapt(support, labels)
    refined = router.adapt(support, labels, refine="gradient:steps=2")
    scores = torch.tensor([*task.routing_scores.values(), task.uncertainty], dtype=torch.float64, device="cpu")
    weights = [part.weight for part in (*task.explain().components, *refined.explain().components)]
    explained = torch.tensor(weights, dtype=torch.float64, device="cpu")
    return task.predict_proba(queries), refined.predict_proba(queries), scores, explained


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


CONDITIONS: dict[str, Callable[[], Any]] = {
    "float64 as default dtype": lambda: default_dtype(torch.float64),
    "meta as default device": lambda: torch.device("meta"),
    "inference mode": torch.inference_mode,
    "no_grad": torch.no_grad,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "set_grad_enabled": torch.enable_grad,
    "pyro.validation_enabled": pyro.validation_enabled,
    "module_local_params": lambda: pyro.settings.context(module_local_params=True),
}


@pytest.mark.parametrize("condition", CONDITIONS)
def test_the_answers_do_not_depend_on_the_process(run: Path, condition: str) -> None:
    data = task_of(0)
    expected = life(run, data)
    with CONDITIONS[condition]():
        found = life(run, data)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("condition", ["float64 as default dtype", "meta as default device", "inference mode"])
def test_a_router_that_was_loaded_before(run: Path, classifier: RoutedClassifier, condition: str) -> None:
    support, labels, queries = task_of(1)
    made = RoutedClassifier(classifier.router, classifier.deployment, cache_size=0)
    expected = made.adapt(support, labels)
    with CONDITIONS[condition]():
        task = made.adapt(support, labels)
        found, text = task.predict_proba(queries), str(task.explain())
    assert torch.equal(found, expected.predict_proba(queries))
    assert text == str(expected.explain())


def test_a_task_of_inference_mode_can_be_refined_and_used_outside(classifier: RoutedClassifier) -> None:
    with torch.inference_mode():
        support, labels, queries = task_of(2)
        inside = classifier.adapt(support, labels, refine="gradient:steps=2").predict_proba(queries)
    support, labels, queries = task_of(2)
    made = RoutedClassifier(classifier.router, classifier.deployment, cache_size=0)
    assert torch.equal(made.adapt(support, labels, refine="gradient:steps=2").predict_proba(queries), inside)


@pytest.mark.filterwarnings("ignore:Dynamo:UserWarning")  # of what it runs as it is
@pytest.mark.parametrize("adapts", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_calls_that_are_compiled_give_the_same_answers(adapts: bool, classifier: RoutedClassifier) -> None:
    """torch.compile's tracing without a code generator, which would need a C compiler; adapting is most to trace."""
    support, labels, queries = task_of(3)

    def adapted() -> AdaptedTask:
        made = RoutedClassifier(classifier.router, classifier.deployment, cache_size=0)
        return made.adapt(support, labels, seed=3)

    task = adapted()

    def ask() -> Tensor:
        return (adapted() if adapts else task).predict_proba(queries)

    expected = adapted().predict_proba(queries)
    torch.testing.assert_close(torch.compile(ask, backend="eager")(), expected, rtol=1e-6, atol=1e-6)


def test_nothing_of_the_process_is_changed(run: Path) -> None:
    torch.manual_seed(5)
    before = state()
    life(run, task_of(0))
    assert state() == before


def test_building_and_evaluating_leave_the_random_state_alone(world: Path) -> None:
    from pyro_smat.inference.evaluation.router import evaluate_router
    from pyro_smat.inference.runs.pools import build_pool

    config = load_config(world / "config.toml")
    before = state()
    made = classifier_of(world / "config.toml")
    evaluate_router(made, build_pool(config, "test"), episodes=4, progress=False)
    assert state() == before


@pytest.mark.parametrize("ends", ["well", "with an error"])
def test_training_leaves_the_random_state_alone_and_does_not_depend_on_it(
    world: Path, ends: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_config(world / "config.toml")
    weights = []
    for seed in (5, 6):
        torch.manual_seed(seed)
        before = state()
        if ends == "well":
            trained = train_router(config, progress=False)[0].router
            weights.append({**trained.model.state_dict(), **trained.guide.state_dict()})
        else:
            monkeypatch.setattr(MetaTrainer, "validate", lambda self: self.no_such_thing)
            with pytest.raises(AttributeError, match="no_such_thing"):
                train_router(config, progress=False)
        assert state() == before
    assert all(torch.equal(first, second) for first, second in zip(*(w.values() for w in weights), strict=True))


def test_aligning_by_activations_switches_nothing_meanwhile_either() -> None:
    """A fused layer of a transformer would not call its parts; that must not be the concern of other threads."""
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    network = nn.Sequential(layer, nn.Linear(8, 3)).eval()
    inputs = torch.rand(6, 5, 8)
    weights = dict(network.state_dict())
    generator = torch.Generator().manual_seed(0)
    other = {name: tensor + 0.1 * torch.rand(tensor.shape, generator=generator) for name, tensor in weights.items()}
    groups = find_groups(network, inputs[:2])
    inside, seen, looked = threading.Event(), [], threading.Event()

    def wait(*_: Any) -> None:
        inside.set()
        assert looked.wait(60)

    def look() -> None:
        assert inside.wait(60)
        seen.append(state())
        looked.set()

    before = state()
    layer.linear1.register_forward_hook(wait)  # networks run as copies, hooks included
    watcher = threading.Thread(target=look)
    watcher.start()
    found = align_activations(weights, other, groups, network, inputs)
    watcher.join()
    assert seen == [before]
    assert state() == before
    assert {group.by for group in found.groups if "heads" not in group.name} == {"activations"}


@pytest.mark.parametrize("guide", ["logistic_normal", "catalog", "dirichlet", "concrete", "hierarchical", "point"])
def test_initial_weights_are_those_of_the_seed_in_any_process(world: Path, guide: str) -> None:
    config = load_config(world / "config.toml", [f"guide.kind={guide}", "experts.count=0"])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        expected = build_router(config)
        torch.manual_seed(2)
        with default_dtype(torch.float64):
            found = build_router(config)
    for part in ("model", "guide"):
        a, b = getattr(expected, part).state_dict(), getattr(found, part).state_dict()
        assert list(a) == list(b)
        assert all(torch.equal(a[name], b[name]) and a[name].dtype == b[name].dtype for name in a)


def test_own_defaults_leave_what_was_asked_for() -> None:
    """Against the same calls where float32 is the default."""
    array = np.array([0.5, 1.5])

    def calls() -> list[Tensor]:
        generator = torch.Generator().manual_seed(0)
        return [
            torch.zeros(2), torch.tensor([0.1, 2]), torch.full((2,), 0.1), torch.arange(3) / 7,
            torch.arange(0.0, 1.0, 0.3),
            torch.randn(3, generator=generator), torch.linspace(0, 1, 4), torch.as_tensor(array),
            torch.from_numpy(array),
            torch.zeros(2, dtype=torch.float64), torch.ones(2).double(), torch.ones(2).to(torch.float64) * 0.1,
            torch.tensor(array), torch.tensor([1, 2]).float(), torch.arange(3).sqrt(),
            torch.stack([torch.zeros(1)] * 2),
            torch.nn.Linear(1, 1).weight.detach() * 0, torch.tensor([1, 2]).mean(dtype=torch.float64),
        ]  # fmt: skip

    with own_defaults():
        expected = calls()
    with default_dtype(torch.float64), own_defaults():
        found = calls()
    assert [tensor.dtype for tensor in found] == [tensor.dtype for tensor in expected]
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
