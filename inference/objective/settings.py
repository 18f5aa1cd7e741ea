"""ObjectiveSettings: what a config says of the objective; :func:`~pyro_smat.inference.objective.build.build_elbo` makes
the CVaR_ELBO of it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from pyro_smat.registry import Choice, Of


class DistillationSettings(BaseModel):
    """Weights of the optional terms that teach the router what trying many routings tells.

    Attributes:
        routing: weight of the KL to the teacher's posterior.
        prediction: weight of the cross-entropy to the teacher's predictions.
        temperature: of the teacher; 1 reads losses as log-likelihoods.
        on: what the teacher tries routings on: the support or, as an oracle, the queries.
        max_sources: without a catalog of the guide's, the teacher tries all mixtures of up to so many sources.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    routing: float = Field(default=0.0, ge=0)
    prediction: float = Field(default=0.0, ge=0)
    temperature: float = Field(default=1.0, gt=0)
    on: Literal["support", "queries"] = "support"
    max_sources: int = Field(default=1, ge=1)


class ObjectiveSettings(BaseModel):
    """The arguments of :class:`~pyro_smat.inference.CVaR_ELBO`, as a config says them.

    Attributes:
        rho, tail_weight, kl_weight, entropy_weight, threshold, baseline, num_particles: as there.
        episode_loss: a name, or a table ``{kind = "clipped_nll", clip = 3.0}``.
        reference: of regret: none, the best source in hindsight, or the fallback.
        distillation: optional terms.

    Example:
        >>> ObjectiveSettings(rho=0.1, episode_loss={"kind": "clipped_nll", "clip": 3.0}).episode_loss.clip
        3.0
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    rho: float = 0.5
    tail_weight: float = Field(default=0.5, ge=0, le=1)
    kl_weight: float = Field(default=1.0, ge=0)
    entropy_weight: float | None = Field(default=None, ge=0)
    episode_loss: Annotated[Choice, Of("episode_loss", "nll")] = Field(default="nll", validate_default=True)
    reference: Literal["none", "best_source", "fallback"] = "best_source"
    threshold: Literal["batch", "queue", "learned"] = "batch"
    baseline: Literal["none", "leave_one_out", "decaying_average"] = "none"
    num_particles: int = Field(default=1, ge=1)
    distillation: DistillationSettings = DistillationSettings()

    @model_validator(mode="after")
    def _rho(self) -> ObjectiveSettings:
        if not 0 < self.rho <= 1:
            raise ValueError(f"rho is {self.rho}; expected a tail fraction in (0, 1]")
        return self
