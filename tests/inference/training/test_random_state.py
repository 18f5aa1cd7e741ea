"""A fresh optimizer and the saved random state go on with the same bits."""

from __future__ import annotations

from pathlib import Path

import torch

from pyro_smat.files import load_state, save_state
from pyro_smat.inference.training.random_state import random_state, set_random_state


def test_optimizer_and_random_state(tmp_path: Path) -> None:
    """A fresh optimizer that loads the state continues with the same bits."""
    path = tmp_path / "state.safetensors"

    def make() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        module = torch.nn.Linear(3, 2)
        return module, torch.optim.AdamW(module.parameters(), lr=0.1, betas=(0.8, 0.9))

    def step(module: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad()
        module(torch.randn(5, 3)).square().sum().backward()
        optimizer.step()

    module, optimizer = make()
    for _ in range(3):
        step(module, optimizer)
    random = random_state(torch.device("cpu"))
    save_state(path, {"m": dict(module.state_dict()), "o": optimizer.state_dict(), "r": random})
    step(module, optimizer)

    other, fresh = make()
    state = load_state(path)
    other.load_state_dict(state["m"])
    fresh.load_state_dict(state["o"])
    set_random_state(state["r"], torch.device("cpu"))
    step(other, fresh)
    for a, b in zip(module.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
