"""TrainingSettings: how to train, for configs and the trainer alike."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Precision = Literal["auto", "float32", "bfloat16", "float16"]


class TrainingSettings(BaseModel):
    """How to train.

    Attributes:
        steps: optimizer steps.
        episodes: B, episodes a step, of all processes together.
        numbered: draw episodes, and everything that is random about them, by number, as several processes always do:
            the run is then the same in one process as in many. Otherwise one process draws from one stream.
        learning_rate: of the router and the head's scale.
        delta_learning_rate: of the shared delta.
        gate_learning_rate: of the experts' log alpha.
        weight_decay: of the router's matrices.
        clip_norm: largest gradient norm of each parameter group.
        warmup: steps of linear warm-up, then a cosine to zero.
        kl_warmup, kl_cycles: growth of the KL weight, see :class:`~pyro_smat.inference.training.annealing.KLSchedule`.
        orthogonality: weight of the penalty on experts that overlap.
        validate_every: steps between validations; 0 never.
        checkpoint_every: steps between checkpoints; 0 only at the end.
        validation_episodes: how many, drawn once.
        temperature_scaling: divide the posterior's logits by one temperature, fitted on the validation episodes after
            training; for guides over a catalog.
        precision: of task parameters and features; "auto" is bfloat16 on a CUDA GPU and float32 elsewhere. Posteriors,
            logits, losses and the optimizer stay float32. With "float16" the loss is scaled before the backward pass,
            and a step whose gradients overflow is left out.
        cuda_graphs: on a GPU, replay the task networks' kernels from CUDA graphs
            (:mod:`pyro_smat.networks.cuda_graphs`): the same run, without the time to launch them, for memory that each
            shape of episodes keeps. Where that cannot be, training runs as ever and a line says why.

    Example:
        >>> TrainingSettings(steps=500, warmup=50).learning_rate
        0.003
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: int = Field(default=300, ge=0)
    episodes: int = Field(default=16, ge=1)
    numbered: bool = False
    learning_rate: float = Field(default=3e-3, gt=0)
    delta_learning_rate: float = Field(default=1e-3, gt=0)
    gate_learning_rate: float = Field(default=5e-2, gt=0)
    weight_decay: float = Field(default=1e-2, ge=0)
    clip_norm: float = Field(default=1.0, gt=0)
    warmup: int = Field(default=20, ge=0)
    kl_warmup: int = Field(default=0, ge=0)
    kl_cycles: int = Field(default=1, ge=1)
    orthogonality: float = Field(default=0.0, ge=0)
    validate_every: int = Field(default=100, ge=0)
    checkpoint_every: int = Field(default=100, ge=0)
    validation_episodes: int = Field(default=64, ge=1)
    temperature_scaling: bool = False
    precision: Precision = "auto"
    cuda_graphs: bool = False

    @model_validator(mode="after")
    def _whole_kl(self) -> TrainingSettings:
        if self.kl_warmup * self.kl_cycles > self.steps > 0:
            raise ValueError(
                f"kl_warmup is {self.kl_warmup} in each of {self.kl_cycles} cycles of {self.steps} steps in all; "
                "expected it to fit: the KL would never have its whole weight"
            )
        return self
