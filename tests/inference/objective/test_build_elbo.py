"""From settings to the objective: every setting arrives, and what the settings refuse."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from pydantic import ValidationError

from pyro_smat.inference.objective.build import build_elbo
from pyro_smat.inference.objective.losses import ClippedNLL
from pyro_smat.inference.objective.reference import SourceReference
from pyro_smat.inference.objective.settings import ObjectiveSettings
from pyro_smat.inference.objective.threshold import THRESHOLDS
from pyro_smat.routing import Catalog


def test_every_setting_arrives(make_router: Callable) -> None:
    router = make_router()
    settings = ObjectiveSettings(
        rho=0.25,
        tail_weight=0.7,
        kl_weight=0.3,
        entropy_weight=0.2,
        episode_loss={"kind": "clipped_nll", "clip": 2.0},
        reference="fallback",
        baseline="leave_one_out",
        num_particles=3,
    )
    elbo = build_elbo(settings, router.features, model=router.model)
    assert (elbo.rho, elbo.tail_weight, elbo.kl_weight, elbo.entropy_weight) == (0.25, 0.7, 0.3, 0.2)
    assert (elbo.num_particles, elbo.vectorize_particles, elbo.max_plate_nesting) == (3, True, 3)
    assert elbo.score_function.baseline == "leave_one_out"
    assert elbo.episode_loss == ClippedNLL(clip=2.0)
    assert isinstance(elbo.reference, SourceReference)
    assert (elbo.reference.kind, elbo.reference.metric) == ("fallback", router.model.metric)
    assert elbo.reference.episode_loss == ClippedNLL(clip=2.0)  # in the same units
    assert elbo.penalties == {}
    for name, kind in THRESHOLDS.items():
        named = ObjectiveSettings(threshold=name, reference="none")  # type: ignore[arg-type]
        elbo = build_elbo(named, router.features, model=router.model)
        assert type(elbo.threshold) is kind
        assert elbo.reference is None


def test_teachers_try_the_catalog_or_all_mixtures(make_router: Callable) -> None:
    router = make_router()
    names = router.library.names
    settings = ObjectiveSettings(
        distillation={"routing": 0.1, "prediction": 0.2, "max_sources": 2}  # type: ignore[arg-type]
    )
    penalties = build_elbo(settings, router.features, model=router.model).penalties
    assert {name: penalty.weight for name, penalty in penalties.items()} == {
        "routing_distillation": 0.1,
        "prediction_distillation": 0.2,
    }
    teacher: Any = penalties["routing_distillation"]
    assert teacher.teacher.catalog.names == Catalog.k_hot(names, len(router.model.experts), 2).names
    own = Catalog.k_hot(names, len(router.model.experts))
    teacher = build_elbo(settings, router.features, model=router.model, catalog=own).penalties["routing_distillation"]
    assert teacher.teacher.catalog is own


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rho": 0.0}, r"rho is 0.0; expected a tail fraction in \(0, 1\]"),
        ({"tail_weight": 1.5}, "tail_weight"),
        ({"kl_weights": 1.0}, "kl_weights"),
        ({"episode_loss": "nil"}, "there is no episode_loss 'nil'; did you mean 'nll'"),
        ({"episode_loss": {"kind": "clipped_nll", "cut": 3.0}}, "'clipped_nll' has no option 'cut'; it has clip"),
        ({"distillation": {"routin": 1.0}}, "routin"),
    ],
)
def test_what_the_settings_refuse(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ObjectiveSettings(**values)


def test_settings_are_frozen_and_survive_json() -> None:
    settings = ObjectiveSettings(episode_loss={"kind": "clipped_nll", "clip": 2.0})
    plain = settings.model_dump(mode="json")
    assert plain["episode_loss"] == {"kind": "clipped_nll", "clip": 2.0}
    assert ObjectiveSettings.model_validate(plain) == settings
    with pytest.raises(ValidationError, match="frozen"):
        settings.rho = 0.3
