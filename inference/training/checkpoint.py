"""Checkpoints of a training: everything that the rest of the run depends on, and how it is put back.

trainer -> plain state (:mod:`pyro_smat.files` writes it) -> a trainer of the same config that goes on to the same end.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyro_smat.inference.training.random_state import random_state, set_random_state

if TYPE_CHECKING:
    from pyro_smat.inference.training.trainer import MetaTrainer

CHECKPOINT = "checkpoint.safetensors"
SAVED = {"step", "settings", "model", "guide", "optimizer", "schedule", "elbo", "sampler", "random", "history"}


def state_of(trainer: MetaTrainer) -> dict[str, Any]:
    """What a checkpoint holds."""
    return {
        "step": trainer.step,
        "settings": trainer.settings.model_dump(),
        "model": dict(trainer.model.state_dict()),
        "guide": dict(trainer.guide.state_dict()),
        "optimizer": trainer.optimizer.state_dict(),
        "schedule": trainer.schedule.state_dict(),
        "scaler": trainer.scaler.state_dict(),
        "elbo": trainer.elbo.state_dict(),
        "sampler": trainer.sampler.state_dict(),
        "random": random_state(trainer.device),
        "history": trainer.history,
        "numbered": trainer.numbered,
        "seed": trainer.seed,
    }


def restore(trainer: MetaTrainer, path: Path, state: dict[str, Any]) -> None:
    """Put a state back into a trainer of the same run.

    Args:
        trainer: made as the one that was saved.
        path: of the file, for messages.
        state: what was read there.

    Raises:
        ValueError: when something is missing, or the state is of other settings, another model or another guide.
    """
    missing = sorted(SAVED - set(state))
    if missing:
        raise ValueError(f"{path}: has no {', '.join(missing)}; expected a checkpoint of MetaTrainer")
    settings = trainer.settings.model_dump()
    written = {**type(trainer.settings)().model_dump(), **state["settings"]}  # an earlier version had fewer
    if written != settings:
        changed = sorted(k for k in written if k not in settings or written[k] != settings[k])
        raise ValueError(f"{path}: written with other settings ({', '.join(changed)}); resume with the same config")
    try:
        trainer.model.load_state_dict(state["model"])
        trainer.guide.load_state_dict(state["guide"])
        trainer.optimizer.load_state_dict(state["optimizer"])
        trainer.schedule.load_state_dict(state["schedule"])
        if trainer.scaler.is_enabled():
            trainer.scaler.load_state_dict(state["scaler"])
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"{path}: does not fit this model and guide ({error}); resume with the same config") from error
    trainer.elbo.load_state_dict(state["elbo"])
    trainer.sampler.load_state_dict(state["sampler"])
    trainer.step, trainer.history = state["step"], state["history"]
    trainer.numbered, trainer.seed = state.get("numbered", False), state.get("seed", trainer.seed)
    set_random_state(state["random"], trainer.device)
