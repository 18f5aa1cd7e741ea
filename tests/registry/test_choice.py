"""Choices: what a config says of one registered thing, checked, written as JSON, and built."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from pyro_smat.models.priors import DirichletPrior, MixturePrior
from pyro_smat.registry import KINDS, Supply, build, choose, names, parse, takes


def test_names_and_tables() -> None:
    assert choose("prior", "dirichlet") == choose("prior", {"kind": "dirichlet", "concentration": 1.0})
    chosen = choose("prior", {"kind": "dirichlet", "concentration": 0.5})
    assert (chosen.of, chosen.kind, chosen.concentration) == ("prior", "dirichlet", 0.5)
    assert choose("decision_rule", "top-k").kind == "top_k"  # an alias becomes the name
    assert choose("prior", chosen) is chosen
    with pytest.raises(AttributeError, match="'dirichlet' has no option 'scale'; it has concentration"):
        _ = chosen.scale


@pytest.mark.parametrize(
    ("kind", "value", "message"),
    [
        ("prior", "dirichlett", r"prior: there is no prior 'dirichlett'; did you mean 'dirichlet'\?"),
        (
            "prior",
            {"kind": "dirichlet", "concentratoin": 1.0},
            r"no option 'concentratoin'; did you mean 'concentration'",
        ),
        ("prior", {"kind": "dirichlet", "beta": 1.0}, r"'dirichlet' has no option 'beta'; it has concentration"),
        ("decision_rule", {"kind": "mean", "k": 1}, r"'mean' has no option 'k'; it has no options"),
        ("prior", {"kind": "concrete", "temperature": "warm"}, r"temperature: .*\(found 'warm'\)"),
        ("prior", {"concentration": 1.0}, r"prior without a kind"),
        ("prior", 3, r"expected a name, or \{kind = ..., option = ...\}"),
        ("prior", {"kind": 3}, r"prior without a kind"),
        ("prior", {"kind": "mixture"}, r"'mixture' needs the option 'components'"),
        (
            "prior",
            {"kind": "mixture", "components": ["uniform", {"kind": "cost_aware", "betta": 1}]},
            r"components.1: 'cost_aware' has no option 'betta'; did you mean 'beta'",
        ),
        ("episode_loss", "file.py:Name", None),
    ],
)
def test_refusals(kind: str, value: Any, message: str | None) -> None:
    if message is None:  # a name that is kept, and cannot be built
        with pytest.raises(ValueError, match="loading never runs a file"):
            build(choose(kind, value))
        return
    with pytest.raises(ValueError, match=message):
        choose(kind, value)


@pytest.mark.parametrize("kind", KINDS)
def test_every_default_survives_json(kind: str) -> None:
    for name in names(kind):
        try:
            chosen = choose(kind, name)
        except ValueError as error:
            assert "needs the option" in str(error)  # noqa: PT017
            continue
        again = choose(kind, json.loads(json.dumps(chosen.to_dict())))
        assert again == chosen
        assert again.options == chosen.options
        assert copy.deepcopy(chosen) == chosen


def test_nested_choices_survive_json_and_are_built() -> None:
    mixture = {"kind": "mixture", "components": ["dirichlet", {"kind": "simplex_cost", "beta": 3.0}], "weights": [3, 1]}
    chosen = choose("prior", mixture)
    assert choose("prior", json.loads(json.dumps(chosen.to_dict()))) == chosen
    supply = {"num_sources": 3, "num_experts": 2, "num_blocks": 1, "catalog": None}
    prior = build(chosen, supply)
    assert isinstance(prior, MixturePrior)
    assert [type(part).__name__ for part in prior.components] == ["DirichletPrior", "SimplexCostPrior"]
    assert prior.components[1].beta.item() == pytest.approx(3.0)  # type: ignore[attr-defined]
    assert prior.log_weights.exp().tolist() == pytest.approx([0.75, 0.25])


def test_what_is_built_takes_what_it_asks_for_and_no_more() -> None:
    asked: list[str] = []
    supply = Supply(
        num_sources=lambda: 3, num_experts=lambda: 2, num_blocks=lambda: 1, catalog=lambda: asked.append("c")
    )
    prior = build(choose("prior", {"kind": "dirichlet", "concentration": 0.5}), supply)
    assert isinstance(prior, DirichletPrior)
    assert prior.concentration.tolist() == [0.5] * 5
    assert not asked
    with pytest.raises(
        ValueError, match="prior 'dirichlet' asks for 'num_sources', which cannot be had here; there is"
    ):
        build(choose("prior", "dirichlet"), {"catalog": None})
    assert takes(choose("guide", "catalog"), "catalog")
    assert not takes(choose("guide", "point"), "catalog")


def test_a_choice_among_options_that_is_supplied_is_not_built_again() -> None:
    encoder = object()
    made: list[Any] = []

    class Guide:
        def __init__(self, num_sources: int, *, encoder: Any = None) -> None:
            made.append(encoder)

    chosen = choose("guide", {"kind": "own.py:Guide", "encoder": "evidence"}, own={"guide": Guide})
    build(chosen, {"num_sources": 2, "encoder": encoder})
    assert made == ["evidence"]  # of no kind: it is the text that was said
    chosen = choose("guide", {"kind": "point", "encoder": "evidence"})
    guide = build(chosen, {"num_sources": 2, "encoder": build(chosen.encoder, {"feature_width": 5})})
    assert guide.router.encoder.hidden == chosen.encoder.hidden


def test_losses_are_built_with_their_options() -> None:
    loss = build(choose("episode_loss", {"kind": "clipped_nll", "clip": 0.5}))
    distribution = torch.distributions.Categorical(logits=torch.tensor([[[5.0, -5.0], [0.0, 0.0]]]))
    labels, mask = torch.tensor([[1, 0]]), torch.tensor([[True, True]])
    clipped, plain = (found(distribution, labels, mask) for found in (loss, build(choose("episode_loss", "nll"))))
    assert plain.sum().item() > 10
    assert clipped.sum().item() <= 2.0


OWN = """
from pyro_smat.models.priors import DirichletPrior


class Sparse(DirichletPrior):
    def __init__(self, num_sources, num_experts=0, *, share: float = 0.5, **options):
        super().__init__(num_sources, num_experts, concentration=share, **options)
"""


def test_a_class_of_ones_own_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN)
    named = {"kind": f"{tmp_path / 'own.py'}:Sparse", "share": 0.25}
    unread = choose("prior", named)
    assert unread.factory is None
    assert unread.to_dict() == named
    chosen = choose("prior", named, run_files=True)
    prior = build(chosen, {"num_sources": 3, "num_experts": 0, "num_blocks": 1})
    assert type(prior).__name__ == "Sparse"
    assert prior.concentration.tolist() == [0.25] * 3
    again = choose("prior", json.loads(json.dumps(chosen.to_dict())), own={"prior": type(prior)})
    assert again.factory is type(prior)
    with pytest.raises(ValueError, match=r"own.py:Sparse' has no option 'shar'; did you mean 'share'\?"):
        choose("prior", {**named, "shar": 1.0}, own={"prior": type(prior)})


def test_choices_can_be_sent_to_another_process() -> None:
    chosen = choose("prior", {"kind": "dirichlet", "concentration": 0.5})
    assert pickle.loads(pickle.dumps(chosen)) == chosen


@pytest.mark.parametrize(
    ("text", "table"),
    [
        ("frank_wolfe", {"kind": "frank_wolfe"}),
        (" frank_wolfe : steps = 3, max_active=none ", {"kind": "frank_wolfe ", "steps": 3, "max_active": None}),
        ("x:a=true,b=0.5,c=word", {"kind": "x", "a": True, "b": 0.5, "c": "word"}),
        ("my.py:Name", {"kind": "my.py:Name"}),
        ("my.py:Name:depth=3", {"kind": "my.py:Name", "depth": 3}),
    ],
)
def test_words_of_a_command_line(text: str, table: dict[str, Any]) -> None:
    found = parse(text)
    assert {**found, "kind": found["kind"].strip()} == {**table, "kind": table["kind"].strip()}


@pytest.mark.parametrize("text", ["x:steps", "x:steps=1,steps=2", "x:=3,"])
def test_words_that_are_no_options(text: str) -> None:
    with pytest.raises(ValueError, match="expected options name=value, each once"):
        parse(text)
