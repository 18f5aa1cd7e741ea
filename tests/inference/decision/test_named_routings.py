"""Named routings, and tasks that fall back to them."""

from __future__ import annotations

import pytest
import torch
from tiny_run import tiny_config, tiny_router

from pyro_smat.inference.decision import Deployment
from pyro_smat.inference.decision.named_routings import NamedRoutings
from pyro_smat.inference.deployment.classifier import RoutedClassifier
from pyro_smat.models.priors import RoutingPrior

LABELS = ["b", "a", "c"] * 3


def images(count: int, seed: int) -> torch.Tensor:
    return torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("overrides", [(), ("guide.kind=catalog", "prior.kind=cost_aware", "prior.beta=1.5")])
def test_fallbacks(overrides: tuple[str, ...]) -> None:
    router = tiny_router(tiny_config(overrides))
    named = NamedRoutings(router.model, router.catalog)
    prior: RoutingPrior = router.model.prior
    names = {"source 0": 0, "a": 0, "b": 1, "c": 2}
    for name, index in names.items():
        expected = torch.eye(5)[index]
        assert torch.equal(named[name], expected)
    mean = named["prior mean"]
    if router.catalog is not None:
        p = router.model.prior.logits.softmax(-1)
        by_hand = sum(p[j] * router.catalog.coefficients[j] for j in range(len(router.catalog)))
        torch.testing.assert_close(mean, by_hand)
        assert mean[0] > mean[1]  # the fallback is cheaper
        last = router.catalog.names[-1]
        assert torch.equal(named[last], router.catalog.coefficients[-1])
    else:
        torch.testing.assert_close(mean, torch.tensor([1 / 3] * 3 + [0.5] * 2))
        assert prior.num_blocks == 1
    queries = images(4, 1)
    tasks = [
        RoutedClassifier(router, Deployment(threshold=-1.0, fallback=name)).adapt(images(9, 0), LABELS)
        for name in ("a", "source 0", "b", "prior mean")
    ]
    answers = [task.predict_proba(queries) for task in tasks]
    assert torch.equal(answers[0], answers[1])
    assert not torch.allclose(answers[0], answers[2])
    assert not torch.allclose(answers[2], answers[3])
    assert "falls back to prior mean" in str(tasks[3].explain())
    with pytest.raises(ValueError, match="fallback is 'z'; expected one of source 0, prior mean, a, b, c"):
        RoutedClassifier(router, Deployment(fallback="z"))


def test_blockwise_fallbacks() -> None:
    router = tiny_router(tiny_config(["sources.blocks={weight='.*weight', bias='.*bias'}"]))
    assert torch.equal(NamedRoutings(router.model)["b"], torch.eye(5)[1].expand(2, -1))
    assert NamedRoutings(router.model)["prior mean"].sum(-1).tolist() == pytest.approx([2.0, 2.0])
