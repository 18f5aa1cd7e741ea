"""Routings: contrasts, catalogs, costs."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch

from pyro_smat.routing import Catalog, contrast_basis, routing_costs, softmax_of_contrasts


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_contrast_basis_is_orthonormal_in_the_zero_sum_plane(size: int, dtype: torch.dtype) -> None:
    basis = contrast_basis(size, torch.empty(0, dtype=dtype))
    assert basis.shape == (size, size - 1)
    assert basis.dtype == dtype
    tolerance = {"atol": 1e-6, "rtol": 0.0}
    torch.testing.assert_close(basis.T @ basis, torch.eye(size - 1, dtype=dtype), **tolerance)
    torch.testing.assert_close(basis.sum(0), torch.zeros(size - 1, dtype=dtype), **tolerance)


def test_softmax_of_contrasts_is_the_softmax_of_any_logits_with_these_contrasts() -> None:
    logits = torch.randn(4, 3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 3
    contrasts = logits @ contrast_basis(6, logits)
    torch.testing.assert_close(softmax_of_contrasts(contrasts), logits.softmax(-1))
    torch.testing.assert_close(softmax_of_contrasts((logits + 5.0) @ contrast_basis(6, logits)), logits.softmax(-1))
    assert torch.equal(softmax_of_contrasts(torch.zeros(2, 0)), torch.ones(2, 1))  # a single source


def test_the_cached_basis_cannot_be_spoilt() -> None:
    like = torch.empty(0, dtype=torch.float64)
    contrast_basis(11, like).zero_()
    assert contrast_basis(11, like).any()
    with torch.inference_mode():
        softmax_of_contrasts(torch.zeros(12, dtype=torch.float64))  # first use of this size
    contrasts = torch.zeros(12, dtype=torch.float64, requires_grad=True)
    softmax_of_contrasts(contrasts)[0].backward()
    assert contrasts.grad is not None
    assert contrasts.grad.any()


def test_k_hot_lists_every_subset_with_every_expert() -> None:
    catalog = Catalog.k_hot(["a", "b", "c"], experts=2, max_sources=2)
    expected = {}
    for k in (1, 2):
        for subset in combinations("abc", k):
            for m in (0, 1):
                row = [1 / k if s in subset else 0.0 for s in "abc"] + [float(m == 0), float(m == 1)]
                expected["+".join(subset) + f"/expert{m}"] = row
    assert dict(zip(catalog.names, catalog.coefficients.tolist(), strict=True)) == expected
    assert len(catalog) == 12
    torch.testing.assert_close(catalog.coefficients[:, :3].sum(-1), torch.ones(12))


def test_k_hot_without_experts_starts_with_the_sources_themselves() -> None:
    catalog = Catalog.k_hot(["pre", "x", "y"])
    assert catalog.names == ("pre", "x", "y")
    assert torch.equal(catalog.coefficients, torch.eye(3))
    assert len(Catalog.k_hot(["pre", "x"], max_sources=5)) == 3


def test_k_hot_limits() -> None:
    assert len(Catalog.k_hot([str(i) for i in range(16)], experts=16, limit=256)) == 256
    with pytest.raises(ValueError, match=r"136 source subsets x 2 experts make 272 routings; expected at most 256"):
        Catalog.k_hot([str(i) for i in range(16)], experts=2, max_sources=2)
    with pytest.raises(ValueError, match="at most 256"):  # counted, not listed: there are 2**64 - 1 subsets
        Catalog.k_hot([str(i) for i in range(64)], max_sources=64)
    for sources, most in ((["a"], 0), ([], 1)):
        with pytest.raises(ValueError, match="at least 1 of each"):
            Catalog.k_hot(sources, max_sources=most)


def test_a_catalog_that_does_not_fit_its_names_is_refused() -> None:
    for coefficients, names in ((torch.eye(2), ("a",)), (torch.zeros(0, 2), ()), (torch.ones(2), ("a", "b"))):
        with pytest.raises(ValueError, match="catalog has coefficients"):
            Catalog(coefficients, names)


def test_costs_are_paid_for_what_is_open_whatever_its_weight() -> None:
    coefficients = torch.tensor([[[0.5, 0.5, 0.0, 1.0], [0.001, 0.0, 0.999, 0.0]], [[1.0, 0, 0, 0], [0, 0, 0, 0]]])
    costs = torch.tensor([1.0, 10.0, 100.0, 1000.0])
    assert routing_costs(coefficients, costs).tolist() == [[1011.0, 101.0], [1.0, 0.0]]
    assert routing_costs(coefficients[0, 0], costs).shape == ()
