"""Models and guides of the user's own: what does not fit is named before training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from own_parts import own_overrides, write_own_parts
from pyro import poutine
from tiny_run import tiny_config, tiny_pool, tiny_router

from pyro_smat.episodes import EpisodeBatch
from pyro_smat.episodes.sampler import EpisodeSampler
from pyro_smat.inference.assembly.pair import check_attributes, check_pair
from pyro_smat.inference.assembly.router import Router


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_own_parts(tmp_path_factory.mktemp("own"))


def trial(router: Router) -> EpisodeBatch:
    return router.features().attach(EpisodeSampler(tiny_pool(), 3, 3, 2, seed=0).sample(2))


def test_the_own_likelihood_is_the_one_that_is_used(files: Path) -> None:
    plain, tempered = tiny_router(tiny_config()), tiny_router(tiny_config(own_overrides(files, "Tempered")))
    batch = trial(plain)
    torch.manual_seed(0)
    drawn = poutine.trace(plain.guide).get_trace(batch)
    logits = [poutine.replay(r.model.eval(), trace=drawn)(batch) for r in (plain, tempered)]
    torch.testing.assert_close(logits[1], logits[0] / 4)


@pytest.mark.parametrize(
    ("model", "guide", "message"),
    [
        ("Silent", None, r"model Silent observes nothing; expected a pyro.sample\(..., obs=batch.query.labels\)"),
        ("Restless", None, r"model Restless draws the site 'mood', which guide LogisticNormalGuide does not have"),
        (None, "NoExperts", r"model RoutedModel draws the site 'expert_ilr', which guide NoExperts does not have"),
        (None, "Extra", r"guide Extra draws the site 'extra', which model RoutedModel does not have.*is_auxiliary"),
        (
            "TwoArguments",
            None,
            r"model TwoArguments cannot be called with a batch \(.*'mood'\); expected forward\(self",
        ),
        (None, "NoArguments", r"guide NoArguments cannot be called with a batch"),
    ],
)
def test_pairs_that_do_not_fit_are_named(model: str | None, guide: str | None, message: str, files: Path) -> None:
    router = tiny_router(tiny_config(own_overrides(files, model, guide)))
    with pytest.raises(ValueError, match=message):
        check_pair(router.model, router.guide, trial(router))


@pytest.mark.parametrize(
    ("model", "guide"), [(None, None), ("Tempered", None), (None, "FromLosses"), (None, "Auxiliary")]
)
def test_pairs_that_fit_pass(model: str | None, guide: str | None, files: Path) -> None:
    router = tiny_router(tiny_config(own_overrides(files, model, guide)))
    check_pair(router.model, router.guide, trial(router))


def test_a_prior_of_another_family_is_named_by_its_site(files: Path) -> None:
    """A guide of one's own is on the simplex, and its prior is built; the sites tell that they differ."""
    router = tiny_router(tiny_config(own_overrides(files, guide="FromLosses")))
    other = tiny_router(tiny_config(["guide.kind=catalog"]))
    with pytest.raises(
        ValueError, match=r"model RoutedModel draws the site 'routing', which guide FromLosses does not"
    ):
        check_pair(other.model, router.guide, trial(router))


def test_an_error_inside_a_program_is_not_taken_for_a_wrong_signature(files: Path) -> None:
    router = tiny_router(tiny_config(own_overrides(files, "Broken")))
    with pytest.raises(TypeError, match=r"object of type 'int' has no len"):
        check_pair(router.model, router.guide, trial(router))


@pytest.mark.parametrize(
    ("model", "guide", "message"),
    [
        (
            "Demanding",
            None,
            r"model: .*my_model.py:Demanding' needs the option 'moon_phase'; .* needs the option 'tide'",
        ),
        ("Foreign", None, r"model Foreign has no forward, basis, logits, network.*expected a subclass of the library"),
        (None, "NoPosterior", r"guide NoPosterior has no posterior; expected a subclass"),
        ("Absent", None, r"my_model.py: has no class or function 'Absent'; it has Options, Tempered, Named"),
        (None, "a_number", r"my_guide.py: has no class or function 'a_number'; it has FromLosses"),
    ],
)
def test_classes_that_cannot_be_used_are_named(model: str | None, guide: str | None, message: str, files: Path) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_router(tiny_config(own_overrides(files, model, guide)))


def test_attributes_that_are_missing_are_named() -> None:
    class Some:
        values = 3

    check_attributes(Some(), ("values",), "thing")
    with pytest.raises(ValueError, match=r"thing Some has no posterior; .* class with values, posterior"):
        check_attributes(Some(), ("values", "posterior"), "thing")


def test_options_that_go_on_to_the_base_are_those_of_the_config(files: Path) -> None:
    """A constructor with **options gets what the library's own would: nothing falls back to a default in silence."""
    settings = [
        "model={kind='routed', metric='euclidean', scale=3.0, gates='separate'}",
        "experts.count=2",
        "guide={kind='logistic_normal', covariance='low_rank', rank=2, encoder={kind='evidence', hidden=6}}",
        "prior={kind='logistic_normal', scale=3.0}",
        'sources.blocks={weight=".*weight", bias=".*bias"}',
    ]
    plain = tiny_router(tiny_config(settings))
    wide = [f"guide.kind={files / 'my_guide.py'}:Wide", "guide.rank=1"]
    named = [*settings, *own_overrides(files, "Named"), "model.colour=blue", *wide]
    router = tiny_router(tiny_config(named))
    model: Any = router.model
    assert (type(model).__name__, model.colour) == ("Named", "blue")
    assert (model.metric, model.gates, len(model.experts)) == ("euclidean", "separate", 2)
    assert model.scale.item() == pytest.approx(3.0)
    assert model.prior.num_blocks == 2
    assert model.prior.scale.tolist() == [3.0] * 5
    mine, its = ({k: p.shape for k, p in r.guide.named_parameters()} for r in (router, plain))
    assert mine == its  # of a low-rank covariance, of experts, of blocks: a rank of 1, twice
    batch = trial(router)
    of_mine, of_its = (type(r.guide.posterior(batch)).__name__ for r in (router, plain))
    assert of_mine == of_its
    assert router.guide.posterior(batch).mean.shape == (2, 2, 5)
    check_pair(router.model, router.guide, batch)
