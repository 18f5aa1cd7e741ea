"""Remembered objects say what they were constructed with, and the choice that makes them again."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pyro_smat.encoders import DeepSetsEncoder
from pyro_smat.guides import PointGuide
from pyro_smat.inference.decision.rules import TopK
from pyro_smat.models.priors import (
    CostAwareCatalogPrior,
    DirichletPrior,
    LogisticNormalPrior,
    MixturePrior,
    SimplexCostPrior,
)
from pyro_smat.registry import Remembered, build, choose, describe
from pyro_smat.routing import Catalog


class Base(Remembered):
    def __init__(self, size: int, *, rate: float = 1.0) -> None:
        self.value = (size, rate)


class Mine(Base):
    def __init__(self, *args: int, colour: str = "red", **options: Any) -> None:
        super().__init__(*args, **options)


class Doubled(Base):
    def __init__(self, size: int, *, rate: float = 1.0) -> None:
        super().__init__(2 * size, rate=2 * rate)


class Plain(Base):
    pass


def test_arguments_are_kept_as_they_were_passed() -> None:
    assert Base(3).constructed_with == {"size": 3}
    assert Base(size=3, rate=2.0).constructed_with == {"size": 3, "rate": 2.0}
    assert Plain(4, rate=0.5).constructed_with == {"size": 4, "rate": 0.5}


def test_arguments_that_go_on_to_a_base_are_kept_by_name() -> None:
    assert Mine(3, colour="blue", rate=2.0).constructed_with == {"size": 3, "colour": "blue", "rate": 2.0}


def test_what_the_outermost_constructor_was_given_stands() -> None:
    made = Doubled(3, rate=1.5)
    assert made.constructed_with == {"size": 3, "rate": 1.5}
    assert made.value == (6, 3.0)


class Fixed(Base):
    """Says itself what its base gets."""

    def __init__(self, *args: int, **options: Any) -> None:
        super().__init__(*args, rate=9.0, **options)


def test_what_a_class_says_itself_to_its_base_is_not_an_argument() -> None:
    assert Fixed(3).constructed_with == {"size": 3}
    assert Fixed(3).value == (3, 9.0)


def test_one_object_inside_another_keeps_its_own() -> None:
    encoder = DeepSetsEncoder(5, 8)
    guide = PointGuide(3, encoder=encoder)
    assert guide.constructed_with["encoder"] is encoder
    assert encoder.constructed_with == {"feature_width": 5, "hidden": 8}


@pytest.mark.parametrize(
    "made",
    [
        DirichletPrior(3, 2, concentration=0.5),
        DirichletPrior(3, 2, concentration=torch.arange(1.0, 6.0)),
        LogisticNormalPrior(3, 2, scale=3.0),
        LogisticNormalPrior.cost_aware(3, 2, beta=2.0),
        SimplexCostPrior(3, 2, costs=[0.0, 1.0, 2.0, 3.0, 4.0], beta=2.0, learn=True),
        MixturePrior([DirichletPrior(3, 2), SimplexCostPrior(3, 2, beta=5.0)], weights=[0.7, 0.3]),
    ],
    ids=lambda made: type(made).__name__,
)
def test_what_is_described_is_made_again(made: Any) -> None:
    chosen = describe("prior", made)
    assert choose("prior", chosen.to_dict()) == chosen
    again = build(chosen, {"num_sources": 3, "num_experts": 2, "num_blocks": 1})
    assert type(again) is type(made)
    for name, value in made.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], value)


def test_a_class_that_a_registered_function_makes_has_its_name() -> None:
    catalog = Catalog.k_hot(("a", "b"), max_sources=2)
    chosen = describe("prior", CostAwareCatalogPrior(catalog, [0.0, 2.0], beta=0.5))
    assert (chosen.kind, chosen.costs, chosen.beta) == ("cost_aware", (0.0, 2.0), 0.5)


def test_registered_things_inside_are_choices_and_known_options_stand() -> None:
    chosen = describe("guide", PointGuide(3, encoder=DeepSetsEncoder(5, 8)))
    assert chosen.to_dict() == {"kind": "point", "encoder": {"kind": "deep_sets", "hidden": 8}}
    other = choose("encoder", "evidence")
    assert describe("guide", PointGuide(3), encoder=other).encoder is other


def test_dataclasses_say_their_fields() -> None:
    assert describe("decision_rule", TopK(k=3)).to_dict() == {"kind": "top_k", "k": 3}


class Noted(LogisticNormalPrior):
    def __init__(self, num_sources: int, *, note: Any = None, **options: Any) -> None:
        super().__init__(num_sources, **options)


def test_classes_of_ones_own_are_named_by_their_file() -> None:
    chosen = describe("prior", Noted(3, note="x", scale=3.0))
    assert chosen.kind == "test_remembered.py:Noted"
    assert (chosen.note, chosen.scale) == ("x", 3.0)
    assert chosen.factory is Noted
    assert choose("prior", chosen.to_dict(), own={"prior": Noted}) == chosen


def test_what_cannot_be_said_is_named() -> None:
    with pytest.raises(
        ValueError, match=r"prior Noted was made with note=<object .*>, which a saved router cannot say"
    ):
        describe("prior", Noted(3, note=object()))
    with pytest.raises(ValueError, match="prior int does not say how it was made; expected a subclass"):
        describe("prior", 3)
