"""Training settings: strict about names and ranges, frozen, and the same for the config and the trainer."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from pyro_smat.inference.assembly.config import RunConfig
from pyro_smat.inference.training.settings import TrainingSettings


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"stepz": 3}, "stepz"),
        ({"steps": -1}, "steps"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"precision": "float8"}, "precision"),
        ({"steps": 10, "kl_warmup": 4, "kl_cycles": 3}, "kl_warmup is 4 in each of 3 cycles of 10 steps in all"),
    ],
)
def test_what_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TrainingSettings(**values)


def test_the_config_holds_the_same_class() -> None:
    assert RunConfig.model_fields["training"].annotation is TrainingSettings
    settings = TrainingSettings(steps=7, kl_warmup=7)  # as long as training: the last step is one short of the whole
    with pytest.raises(ValidationError, match="frozen"):
        settings.steps = 9  # type: ignore[misc]
