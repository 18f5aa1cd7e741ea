"""Training in several processes: the same run as in one, whoever has which episodes, resumed or not."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import distributed_run
import pytest
import torch
from distributed_run import CASES, STEPS, result_of, resume, trainer_of

from pyro_smat.distributed import World
from pyro_smat.files import load_state
from pyro_smat.inference.training.checkpoint import CHECKPOINT
from pyro_smat.metrics.risk import cvar

SHARES = {"images_per_second", "mutual_information", "effective_routings", "variance"}  # means over shares, or a clock
OF_FOUR = ("uneven", "queue", "learned", "rho_0.1")

pytestmark = pytest.mark.filterwarnings("ignore:rho x B")


def launch(words: Sequence[str], folder: Path, until: int, *cases: str, **variables: str) -> CompletedProcess[str]:
    """``python *words`` before the program of the processes."""
    rooms = [str(Path(distributed_run.__file__).parent), *sys.path]
    return subprocess.run(
        [sys.executable, *words, distributed_run.__file__, str(folder), str(until), *cases],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(rooms), "OMP_NUM_THREADS": "1", **variables},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture(scope="module")
def of_torchrun(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, CompletedProcess[str]]:
    """Results of two processes of torchrun in 2/; one of them failed in the end."""
    folder = tmp_path_factory.mktemp("processes")
    words = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    return folder, launch(words, folder / "2", 1, *CASES, "fail")


@pytest.fixture(scope="module")
def folder(of_torchrun: tuple[Path, CompletedProcess[str]]) -> Path:
    """Those, and of four processes in 4/; resumed/ goes on from two processes in one, then in four."""
    folder, done = of_torchrun
    assert {*CASES, "resumed"} <= {path.name for path in (folder / "2").iterdir()}, done.stderr
    (folder / "2" / "resumed").rename(folder / "resumed")
    assert resume(folder / "resumed", 2).step == 2
    (folder / "4").mkdir()
    (folder / "resumed").rename(folder / "4" / "resumed")
    done = launch((), folder / "4", STEPS, *OF_FOUR, PROCESSES="4")
    assert done.returncode == 0, done.stderr
    return folder


def numbers(value: Any, name: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """Every number of a nested state, by its path."""
    if isinstance(value, dict | list):
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            yield from numbers(part, f"{name}/{key}")
    elif value is not None:
        yield name, torch.as_tensor(value, dtype=torch.float64)


def assert_same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    """To float64 rounding, through steps of Adam, which divides noise by its size where a gradient is zero."""
    first, second = dict(numbers(found)), dict(numbers(expected))
    assert first.keys() == second.keys()
    for name, value in first.items():
        if name.rsplit("/", 1)[-1] not in SHARES:
            difference = (value - second[name]).abs() - 1e-9 * (1 + second[name].abs())
            assert value.shape == second[name].shape, name
            assert not (difference > 0).any(), (name, value, second[name])
            assert torch.equal(value.isnan(), second[name].isnan()), name


@pytest.mark.parametrize(("processes", "case"), [*((2, case) for case in CASES), *((4, case) for case in OF_FOUR)])
def test_many_processes_are_one(processes: int, case: str, folder: Path) -> None:
    alone = trainer_of(case)
    before = {name: p.detach().clone() for name, p in alone.guide.named_parameters()}
    alone.fit(progress=False)
    assert any(not torch.equal(p, before[name]) for name, p in alone.guide.named_parameters())
    assert_same(load_state(folder / str(processes) / case), result_of(alone))


def test_resumed_in_two_one_and_four_processes(folder: Path) -> None:
    alone = trainer_of("learned", checkpoint_every=1)
    alone.fit(progress=False)
    found = load_state(folder / "4" / "resumed" / CHECKPOINT)
    assert found["step"] == STEPS
    assert found["numbered"] is True
    expected = result_of(alone)
    assert_same({name: found[name] for name in expected}, expected)


def test_mean_of_the_tails_of_processes_is_another_number(folder: Path) -> None:
    trainer = trainer_of("no_reference")
    trainer.training_step()
    recorded = load_state(folder / "2" / "no_reference")["history"][0]["cvar"]
    again = trainer_of("no_reference")
    again.model.train()
    again.guide.train()
    again._anneal()
    with again._episodes(World()) as drawn:
        losses = again.elbo.terms(again.model, again.guide, again.features.attach(drawn)).episode_losses
    halves = [cvar(half, again.elbo.rho).item() for half in losses.chunk(2)]
    assert recorded == pytest.approx(cvar(losses, again.elbo.rho).item(), rel=1e-9)
    assert sum(halves) / 2 < recorded - 1e-3


def test_error_of_one_process_ends_all_with_its_message(of_torchrun: tuple[Path, CompletedProcess[str]]) -> None:
    done = of_torchrun[1]
    assert done.returncode != 0
    assert "ValueError: this process has lost its images" in done.stderr


def test_sources_are_not_among_what_is_sent() -> None:
    """Broadcasts are of state dicts, sums of the optimizer's parameters."""
    trainer = trainer_of("rho_1")
    sent = [*trainer.model.state_dict().values(), *(p for g in trainer.optimizer.param_groups for p in g["params"])]
    basis = trainer.model.source_basis
    assert all(t.untyped_storage().data_ptr() != basis.untyped_storage().data_ptr() for t in sent)
    assert "source_basis" not in trainer.model.state_dict()


def test_numbered_run_resumes_bit_for_bit(tmp_path: Path) -> None:
    assert resume(tmp_path / "whole", STEPS).step == STEPS
    assert resume(tmp_path / "parts", 1).step == 1
    torch.manual_seed(5)  # the process that resumes has drawn other numbers
    assert resume(tmp_path / "parts", STEPS).step == STEPS
    states = [load_state(tmp_path / part / CHECKPOINT) for part in ("whole", "parts")]
    for (name, a), (_, b) in zip(*(numbers({k: s[k] for k in ("model", "guide")}) for s in states), strict=True):
        assert torch.equal(a, b), name


def test_too_few_episodes_and_other_samplers_are_refused() -> None:
    trainer = trainer_of("rho_1", episodes=3)
    with pytest.raises(ValueError, match=r"training.episodes is 3 and there are 4 processes; expected at least one"):
        trainer._meet(World(0, 4))
    trainer.sampler = object()  # type: ignore[assignment]
    with pytest.raises(ValueError, match=r"object has no method at\(numbers\); expected one, as EpisodeSampler has it"):
        trainer.fit(progress=False)


def test_shares_follow_each_other() -> None:
    for size in (1, 2, 3, 4, 7):
        for count in (0, 1, 5, 12):
            shares = [World(rank, size).share(count) for rank in range(size)]
            assert [number for share in shares for number in share] == list(range(count))
            assert max(map(len, shares)) <= math.ceil(count / size)
