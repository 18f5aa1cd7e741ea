"""Short float64 trainings in many processes: ``torchrun --nproc-per-node 2 distributed_run.py FOLDER UNTIL CASE ...``.

UNTIL is the step at which the run of FOLDER/resumed, which is resumed where it is there, is given up. After it one
process fails, where "fail" is among the cases. With PROCESSES=4 in the environment it starts four of its own, which
share what was imported.

The first process saves the parameters, the history and the state of the objective of every case; all assert that theirs
are the same. Without torchrun it is one process, which draws by number all the same.
"""

from __future__ import annotations

import os
import socket
import sys
import warnings
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from tiny_run import build_trainer
from torch import distributed

from pyro_smat.distributed import World, joined
from pyro_smat.episodes import EpisodeBatch, EpisodeSampler
from pyro_smat.files import save_state
from pyro_smat.inference.training.trainer import MetaTrainer

STEPS = 3
CATALOG = ("guide.kind=catalog",)
SCORED = ("guide.kind=catalog", "guide.estimator=score_function")
CASES: dict[str, tuple[str, ...]] = {
    "rho_0.1": ("objective.rho=0.1",),
    "rho_0.5": ("objective.tail_weight=0.5",),
    "rho_1": ("objective.rho=1.0",),
    "no_reference": ("objective.reference=none",),
    "predictive_nll": ("objective.episode_loss=predictive_nll",),
    "enumerated": (*CATALOG, "objective.rho=0.3", "training.orthogonality=0.1"),
    "uneven": (*CATALOG, "training.episodes=7"),
    "dirichlet": ("guide.kind=dirichlet", "training.episodes=5"),
    "concrete": ("guide.kind=concrete", "experts.ramp=0.8", "training.kl_warmup=3"),
    "learned": ("objective.threshold=learned", "experts.budget=primal_dual", "objective.entropy_weight=0.5"),
    "queue": (*SCORED, "objective.baseline=decaying_average", "objective.threshold=queue"),
    "leave_one_out": (*SCORED, "objective.baseline=leave_one_out", "training.episodes=6", "objective.rho=0.9"),
    "clipped": ("training.clip_norm=0.001",),
    "distilled": (*CATALOG, "objective.distillation={routing=0.5, prediction=0.5}", "training.episodes=5"),
    "learned_prior": (*CATALOG, "guide.kind=hierarchical", "prior.kind=hierarchical"),
}


def trainer_of(case: str, folder: Path | None = None, **changed: Any) -> MetaTrainer:
    settings = {"steps": STEPS, "numbered": "true", "validate_every": 2, **changed}
    trainer = build_trainer(folder, overrides=CASES[case], dtype=torch.float64, **settings)
    assert trainer.features.pool is not None
    held_out = EpisodeSampler(trainer.features.pool, 3, 2, 2, seed=2)
    trainer.validation = [trainer.features.attach(held_out.sample(count)) for count in (2, 3, 1)]
    return trainer


def result_of(trainer: MetaTrainer) -> dict[str, Any]:
    states = {"model": dict(trainer.model.state_dict()), "guide": dict(trainer.guide.state_dict())}
    return {**states, "elbo": trainer.elbo.state_dict(), "history": trainer.history}


def run_all(folder: Path, cases: Sequence[str]) -> None:
    for case in cases:
        trainer = trainer_of(case)
        if not World.current().leads:  # what a process has seeded and built for itself does not matter
            trainer.seed = 999
            with torch.no_grad():
                for parameter in trainer.guide.parameters():
                    parameter += 1.0
        trainer.fit(progress=False)
        World.current().check_alike("the trained guide", *(p.tolist() for p in trainer.guide.parameters()))
        if World.current().leads:
            save_state(folder / case, result_of(trainer))


def resume(folder: Path, until: int) -> MetaTrainer:
    """A run that is given up at a step, or comes to its end."""
    trainer = trainer_of("learned", folder, checkpoint_every=1)
    step = trainer.training_step

    def training_step() -> dict[str, float]:
        if trainer.step == until:
            raise KeyboardInterrupt
        return step()

    trainer.training_step = training_step  # type: ignore[method-assign]
    with suppress(KeyboardInterrupt):
        trainer.fit(resume=True, progress=False)
    return trainer


def fail(folder: Path) -> None:
    """The last process meets an error of its own in the second step."""
    trainer = trainer_of("rho_1", folder)
    if World.current().rank == World.current().size - 1:
        sampler, at = trainer.sampler, trainer.sampler.at

        def broken(numbers: Sequence[int]) -> EpisodeBatch:
            if trainer.step == 1:
                raise ValueError("this process has lost its images")
            return at(numbers)

        sampler.at = broken  # type: ignore[assignment, method-assign]
    trainer.fit(progress=False)


def main(folder: Path, until: int, cases: Sequence[str]) -> None:
    warnings.filterwarnings("ignore", "rho x B")
    with joined(torch.device("cpu")):
        assert distributed.is_initialized()
        run_all(folder, [case for case in cases if case != "fail"])
        resume(folder / "resumed", until)
        if "fail" in cases:
            fail(folder / "failed")


def fork(processes: int) -> int:
    """The rank in each of the processes that are started; the one that starts them ends with them."""
    import_module("torch._dynamo")  # which every optimizer loads: once, before there are more processes

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for rank in range(processes):
        child = os.fork()
        if child == 0:
            found = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "MASTER_PORT": port}
            os.environ.update({name: str(value) for name, value in found.items()}, MASTER_ADDR="127.0.0.1")
            return rank
        children.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    sys.exit(max(map(abs, codes)))


if __name__ == "__main__":
    if "PROCESSES" in os.environ:
        fork(int(os.environ["PROCESSES"]))
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
