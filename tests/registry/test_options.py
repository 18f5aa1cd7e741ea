"""Options: what a config may say of a constructor, read off its signature."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import pytest
import torch
from pydantic import Field, ValidationError
from torch import Tensor

from pyro_smat.encoders import SupportEncoder
from pyro_smat.models.priors import RoutingPrior
from pyro_smat.registry import KINDS, Supply, accepts, find, names, options_of
from pyro_smat.registry.options import kind_of

if TYPE_CHECKING:
    from nowhere import Unknown  # type: ignore[import-not-found]


@pytest.mark.parametrize("kind", KINDS)
def test_all_options_of_the_library_can_be_said(kind: str) -> None:
    for name in names(kind):
        schema = options_of(kind, find(kind, name))
        assert not set(schema.model_fields) & set(KINDS[kind].supplied)
        assert "self" not in schema.model_fields


def made(
    num_sources: int,
    depth: int,
    name: str = "x",
    mode: Literal["a", "b"] = "a",
    weights: Sequence[float] | Tensor | None = None,
    span: int | tuple[int, int] = 3,
    table: Mapping[str, int] | None = None,
    path: Path | None = None,
    rate: Annotated[float, Field(gt=0)] = 1.0,
    device: torch.device | None = None,
    hook: Callable[[int], int] | None = None,
    unknown: Unknown | None = None,
    plain=3,
) -> None: ...


def test_types_that_a_config_can_say_are_options() -> None:
    schema = options_of("prior", made)
    assert set(schema.model_fields) == {
        "depth", "name", "mode", "weights", "span", "table", "path", "rate", "unknown", "plain"
    }  # fmt: skip
    assert schema.model_fields["depth"].is_required()
    found: Any = schema(depth=2, weights=[1, 2.5], span=[1, 2], table={"a": 1}, path="x.csv")
    assert (found.weights, found.span, found.table, found.path) == ((1.0, 2.5), (1, 2), {"a": 1}, Path("x.csv"))
    for wrong in (
        {"depth": "deep"},
        {"depth": 1, "mode": "c"},
        {"depth": 1, "weights": "heavy"},
        {"depth": 1, "rate": 0.0},
        {"depth": 1, "dept": 2},
        {},
    ):
        with pytest.raises(ValidationError):
            schema(**wrong)


def test_an_annotation_only_for_type_checkers_leaves_the_others_as_they_are() -> None:
    """Of cost_aware the guide's class cannot be imported at run time; its costs are numbers all the same."""
    schema = options_of("prior", find("prior", "cost_aware"))
    with pytest.raises(ValidationError):
        schema(costs="dear")
    with pytest.raises(ValidationError):
        schema(beta="high")


def test_options_that_go_on_to_a_base_are_its_options() -> None:
    class Base:
        def __init__(self, num_sources: int, depth: int = 5) -> None: ...

    class Middle(Base):
        def __init__(self, num_sources: int, hidden: int = 1, **options: int) -> None: ...

    class Leaf(Middle):
        def __init__(self, **options: int) -> None: ...

    class Closed(Middle):
        def __init__(self, num_sources: int) -> None: ...

    class Plain(Middle):
        pass

    assert set(options_of("prior", Leaf).model_fields) == {"hidden", "depth"}
    assert set(options_of("prior", Plain).model_fields) == {"hidden", "depth"}
    assert not options_of("prior", Closed).model_fields
    assert accepts(Leaf, "num_sources")
    assert not accepts(Closed, "hidden")


def test_what_cannot_be_had_is_named() -> None:
    def demanding(num_sources: int, moon: Tensor) -> None: ...

    with pytest.raises(
        ValueError, match=r"demanding asks for 'moon', which cannot be had; .* may use catalog, guide_cl"
    ):
        options_of("prior", demanding)


def test_base_classes_ask_for_their_kinds() -> None:
    def nested(prior: RoutingPrior, encoder: SupportEncoder | None = None) -> None: ...

    assert (kind_of(RoutingPrior), kind_of(SupportEncoder), kind_of(int)) == ("prior", "encoder", None)
    found: Any = options_of("catalog", nested)(prior="uniform")
    assert (found.prior.kind, found.encoder.kind) == ("uniform", "evidence")  # the default of its kind


def test_supplied_values_are_made_once_and_when_asked_for() -> None:
    asked: list[str] = []

    def make(name: str) -> Callable[[], str]:
        return lambda: asked.append(name) or name

    supply = Supply(a=make("a"), b=make("b"))
    assert (set(supply), len(supply), "a" in supply, "c" in supply) == ({"a", "b"}, 2, True, False)
    assert not asked
    assert [supply["a"], supply["a"]] == ["a", "a"]
    other = supply.but(b=None, c=3)
    assert (other["b"], other["c"], other["a"]) == (None, 3, "a")
    assert asked == ["a"]
