"""Evaluation mode: randomness and checkpointing are refused by name, nothing of the process is switched."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

import pytest
import torch
from odd_networks import Call
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from pyro_smat.networks import evaluation_mode
from pyro_smat.networks.composition import TaskNetwork
from pyro_smat.networks.evaluation_mode import EvaluationMode
from pyro_smat.networks.parameters import ParameterSpace

X = torch.randn(3, 4, 4, generator=torch.Generator().manual_seed(0))


def network_of(how: Callable[[nn.Module, Tensor], Tensor]) -> tuple[TaskNetwork, Tensor]:
    module = nn.Sequential(nn.Linear(4, 4), Call(nn.Linear(4, 4), how))
    space = ParameterSpace.from_module(module)
    return TaskNetwork(module, space), space.flatten(module.state_dict()).expand(2, -1).clone()


RANDOM: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "dropout": lambda m, x: F.dropout(m(x), 0.5),
    "alpha_dropout": lambda m, x: F.alpha_dropout(m(x), 0.5, training=True),
    "dropout2d": lambda m, x: F.dropout2d(m(x).unsqueeze(-1)).squeeze(-1),
    "rrelu": lambda m, x: F.rrelu(m(x), training=True),
    "rrelu_": lambda m, x: torch.rrelu_(m(x), 0.0, 0.3, True),
    "gumbel_softmax": lambda m, x: F.gumbel_softmax(m(x)),
    "rand": lambda m, x: m(x) + torch.rand(4),
    "randn_like": lambda m, x: m(x) + torch.randn_like(x),
    "randperm": lambda m, x: m(x)[..., torch.randperm(4)],
    "bernoulli": lambda m, x: m(x) * torch.bernoulli(torch.full((4,), 0.5)),
    "normal_": lambda m, x: m(x) + torch.empty(4).normal_(),
    "scaled_dot_product_attention": lambda m, x: F.scaled_dot_product_attention(m(x), m(x), x, dropout_p=0.5),
}


@pytest.mark.parametrize("name", RANDOM)
@pytest.mark.parametrize("tasks", [1, 2])
def test_randomness_is_refused_by_function_and_layer_for_any_number_of_tasks(name: str, tasks: int) -> None:
    network, theta = network_of(RANDOM[name])
    state = torch.get_rng_state()
    for gradient in (False, True):
        with pytest.raises(
            ValueError, match=rf"^{name} in module '1' \(Call\) draws random numbers in evaluation mode"
        ):
            network(theta[:tasks].clone().requires_grad_(gradient), X.expand(tasks, *X.shape))
    with pytest.raises(ValueError, match=name):
        network.shared(theta, X)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    "how",
    [
        lambda m, x: F.dropout(m(x), 0.5, training=False),
        lambda m, x: F.dropout(m(x), 0.0),
        lambda m, x: F.rrelu(m(x)),
        lambda m, x: F.scaled_dot_product_attention(m(x), x, x, None, 0.0),
        lambda m, x: torch.dropout(m(x), 0.5, False),
    ],
)
def test_functions_that_could_draw_and_do_not_are_run(how: Callable[[nn.Module, Tensor], Tensor]) -> None:
    network, theta = network_of(how)
    assert torch.equal(network(theta[0], X), network(theta[0], X))
    assert network(theta, X.expand(2, *X.shape)).isfinite().all()


def test_every_public_function_that_pytorch_tags_as_random_is_known() -> None:
    """Against the tags of PyTorch's own operators."""
    known = {f.__name__ for f in (*evaluation_mode._ALWAYS, *evaluation_mode._WHEN_TOLD)}
    missing = []
    for name in dir(torch):
        packet = getattr(torch.ops.aten, name, None)
        if name.startswith("_") or packet is None or not callable(getattr(torch, name)):
            continue
        tags = {tag for overload in packet.overloads() for tag in getattr(packet, overload).tags}
        if torch.Tag.nondeterministic_seeded in tags and name not in known:
            missing.append(name)
    # Recurrent layers draw for their dropout in training alone.
    assert set(missing) <= {"lstm", "gru", "rnn_relu", "rnn_tanh", "miopen_rnn"}


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad:UserWarning")  # by the reentrant kind
def test_activation_checkpointing_is_refused_with_its_layer() -> None:
    for reentrant in (False, True):
        network, theta = network_of(lambda m, x, r=reentrant: checkpoint(m, x, use_reentrant=r))  # type: ignore[misc]
        for tasks in (1, 2):
            with pytest.raises(
                ValueError, match=r"module '1(.part' \(Linear\)|' \(Call\)) uses activation checkpointing"
            ):
                network(theta[:tasks].clone().requires_grad_(), X.expand(tasks, *X.shape))
    network, theta = network_of(lambda m, x: checkpoint(m, x, use_reentrant=False))
    with torch.no_grad():
        assert network(theta, X.expand(2, *X.shape)).shape == (2, 3, 4, 4)  # nothing is recomputed without a gradient


def test_a_frozen_part_without_gradient_is_no_checkpointing() -> None:
    def frozen(layer: nn.Module, x: Tensor) -> Tensor:
        with torch.no_grad():
            inner = layer(x)
        return layer(inner)

    network, theta = network_of(frozen)
    for recompute in (False, True):
        network.recompute = recompute
        leaf = theta.clone().requires_grad_()
        network(leaf, X.expand(2, *X.shape)).sum().backward()
        assert leaf.grad is not None


def test_an_error_of_the_networks_own_comes_as_it_is() -> None:
    def broken(layer: nn.Module, x: Tensor) -> Tensor:
        raise KeyError("on purpose")

    network, theta = network_of(broken)
    for tasks in (1, 2):
        with pytest.raises(KeyError, match="on purpose"):
            network(theta[:tasks], X.expand(tasks, *X.shape))
    assert network.one_at_a_time is None


def test_what_vmap_cannot_run_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    network, theta = network_of(lambda m, x: m(x) * float(x.sum()))
    with caplog.at_level(logging.WARNING):
        network(theta, X.expand(2, *X.shape))
        network(theta, X.expand(2, *X.shape))
    (record,) = caplog.records
    assert "cannot run module '1' (Call) (vmap: It looks like you're" in record.getMessage()
    assert "one task at a time: module '1' (Call)" in repr(network)


def test_the_mode_belongs_to_its_thread() -> None:
    found: list[Tensor] = []
    with EvaluationMode(nn.Identity(), batched=False, gradient=False):
        thread = threading.Thread(target=lambda: found.append(torch.rand(2)))
        thread.start()
        thread.join()
        with pytest.raises(ValueError, match="rand in Identity draws"):
            torch.rand(2)
    assert len(found) == 1


@pytest.mark.parametrize("tasks", [1, 2])
def test_writing_to_weights_is_refused_because_they_are_the_callers(tasks: int) -> None:
    network, theta = network_of(lambda m, x: m.weight.mul_(2.0) @ x)
    with pytest.raises(ValueError, match="writes to its own weights"), torch.no_grad():
        network(theta[:tasks], X.expand(tasks, *X.shape))
