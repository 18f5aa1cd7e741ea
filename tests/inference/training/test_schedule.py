"""Learning rates against the formula, and resumed schedules bit for bit."""

from __future__ import annotations

import math

import pytest
import torch
from torch.optim.lr_scheduler import LRScheduler

from pyro_smat.inference.training.schedule import warmup_then_cosine


def make(warmup: int, steps: int) -> tuple[torch.optim.Optimizer, LRScheduler]:
    groups = [{"params": [torch.zeros(1, requires_grad=True)], "lr": rate} for rate in (3e-3, 0.7)]
    optimizer = torch.optim.SGD(groups)
    return optimizer, warmup_then_cosine(optimizer, warmup, steps)


def run(optimizer: torch.optim.Optimizer, schedule: LRScheduler, steps: int) -> list[list[float]]:
    rates = []
    for _ in range(steps):
        rates.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        schedule.step()
    return rates


@pytest.mark.parametrize(("warmup", "steps"), [(20, 300), (0, 7), (1, 5), (2, 3), (5, 5), (20, 10), (3, 4), (0, 1)])
def test_rates_are_those_of_the_formula(warmup: int, steps: int) -> None:
    """Recursive in torch, closed here: apart by rounding alone."""
    found = run(*make(warmup, steps), steps)
    for step, rates in enumerate(found):
        cosine = 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))
        factor = (step + 1) / warmup if step < warmup else cosine
        assert rates == pytest.approx([3e-3 * factor, 0.7 * factor], rel=1e-9)


@pytest.mark.parametrize("at", [0, 3, 4, 5, 9, 12])
def test_resumed_schedules_are_the_same(at: int) -> None:
    optimizer, schedule = make(4, 12)
    run(optimizer, schedule, at)
    other, resumed = make(4, 12)
    other.load_state_dict(optimizer.state_dict())
    resumed.load_state_dict(schedule.state_dict())
    assert run(other, resumed, 12 - at) == run(optimizer, schedule, 12 - at)
