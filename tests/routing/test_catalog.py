"""Routings: ILR coordinates, catalogs, costs."""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pyro_smat.routing import Catalog, ilr_basis, routing_costs, softmax_of_ilr


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ilr_basis_is_orthonormal_in_the_zero_sum_plane(size: int, dtype: torch.dtype) -> None:
    basis = ilr_basis(size, torch.empty(0, dtype=dtype))
    assert basis.shape == (size, size - 1)
    assert basis.dtype == dtype
    tolerance = {"atol": 1e-6, "rtol": 0.0}
    torch.testing.assert_close(basis.T @ basis, torch.eye(size - 1, dtype=dtype), **tolerance)
    torch.testing.assert_close(basis.sum(0), torch.zeros(size - 1, dtype=dtype), **tolerance)


def test_softmax_of_contrasts_is_the_softmax_of_any_logits_with_these_ilr() -> None:
    logits = torch.randn(4, 3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 3
    ilr = logits @ ilr_basis(6, logits)
    torch.testing.assert_close(softmax_of_ilr(ilr), logits.softmax(-1))
    torch.testing.assert_close(softmax_of_ilr((logits + 5.0) @ ilr_basis(6, logits)), logits.softmax(-1))
    assert torch.equal(softmax_of_ilr(torch.zeros(2, 0)), torch.ones(2, 1))  # a single source


def test_the_cached_basis_cannot_be_spoilt() -> None:
    like = torch.empty(0, dtype=torch.float64)
    ilr_basis(11, like).zero_()
    assert ilr_basis(11, like).any()
    with torch.inference_mode():
        softmax_of_ilr(torch.zeros(12, dtype=torch.float64))  # first use of this size
    ilr = torch.zeros(12, dtype=torch.float64, requires_grad=True)
    softmax_of_ilr(ilr)[0].backward()
    assert ilr.grad is not None
    assert ilr.grad.any()


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
    for coefficients, names in (
        (torch.eye(2), ("a",)),
        (torch.zeros(0, 2), ()),
        (torch.ones(2), ("a", "b")),
        (torch.ones(1, 1, 1, 1), ("a",)),
        (torch.ones(1, 0, 2), ("a",)),
    ):
        with pytest.raises(ValueError, match="catalog has coefficients"):
            Catalog(coefficients, names)
    with pytest.raises(ValueError, match=r"torch\.int64; expected floating point"):
        Catalog(torch.ones(1, 1, dtype=torch.long), ("a",))


@pytest.mark.parametrize(
    "row",
    [
        [0.5, 0.4, 0.0, 0.0],  # adds up to less than 1
        [0.5, 0.6, 0.0, 0.0],
        [0.5, 0.5, 0.4, 0.0],  # experts add up to .4
        [0.5, 0.5, 1.0, 1.0],
        [0.7, 0.0, 0.6, 0.7],  # 2 in all, but the source weights never add up to 1
        [0.0, 0.0, 0.0, 0.0],
    ],
)
@pytest.mark.parametrize("blocks", [0, 2])
def test_rows_that_are_no_mixtures_are_named(row: list[float], blocks: int) -> None:
    good = torch.tensor([0.25, 0.75, 0.0, 1.0])
    rows = torch.stack([good, torch.tensor(row), good])
    if blocks:  # one bad block is enough
        rows = torch.stack([good.expand(3, 4), rows], dim=1)
    with pytest.raises(ValueError, match=r"1 of 3 routings are no mixtures; the first, 'bad'.* add up to 1"):
        Catalog(rows, ("fine", "bad", "fine too"))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -0.5])
def test_weights_are_finite_and_not_negative(bad: float) -> None:
    with pytest.raises(ValueError, match="expected finite weights >= 0"):
        Catalog(torch.tensor([[1.0, 0.0], [1.0 - bad, bad]]), ("a", "b"))


def test_all_routings_have_the_same_number_of_sources() -> None:
    """Each row is a mixture by itself, but the first needs R = 1 and the second R = 2."""
    with pytest.raises(ValueError, match="no number of sources R fits"):
        Catalog(torch.tensor([[1.0, 0.4, 0.6], [0.5, 0.5, 0.0]]), ("a", "b"))


def test_rounding_is_no_error() -> None:
    weights = torch.randn(64, 48, generator=torch.Generator().manual_seed(0)).softmax(-1)
    for dtype in (torch.float32, torch.float64):
        catalog = Catalog(torch.cat([weights, weights[:, :5].softmax(-1)], -1).to(dtype), tuple(map(str, range(64))))
        assert catalog.families() == (0,) * 64


def test_uniform_mixtures_with_and_without_experts() -> None:
    catalog = Catalog.uniform_mixtures(("pre", "letter", "face"), [((0,), None), ((1, 2), 1), ((2,), 0)], experts=2)
    assert catalog.names == ("pre", "letter+face/expert1", "face/expert0")
    assert catalog.coefficients.tolist() == [[1, 0, 0, 0, 0], [0, 0.5, 0.5, 0, 1], [0, 0, 1, 1, 0]]


def test_blockwise_is_the_product_of_the_catalogs_of_the_blocks() -> None:
    stem = Catalog.k_hot(("a", "b", "c"), experts=1)
    middle = Catalog.k_hot(("a", "b", "c"), experts=1, max_sources=2)
    last = Catalog.uniform_mixtures(("a", "b", "c"), [((0, 1, 2), None)], experts=1)
    catalog = Catalog.blockwise([stem, middle, last])
    assert catalog.coefficients.shape == (18, 3, 4)
    expected = {
        f"{x} | {y} | {z}": [
            stem.coefficients[i].tolist(),
            middle.coefficients[j].tolist(),
            last.coefficients[k].tolist(),
        ]
        for i, x in enumerate(stem.names)
        for j, y in enumerate(middle.names)
        for k, z in enumerate(last.names)
    }
    assert dict(zip(catalog.names, catalog.coefficients.tolist(), strict=True)) == expected
    assert catalog.names[1] == "a/expert0 | b/expert0 | a+b+c"


def test_blockwise_limits() -> None:
    catalog = Catalog.k_hot([str(i) for i in range(16)])
    assert len(Catalog.blockwise([catalog, catalog])) == 256
    with pytest.raises(ValueError, match="16 x 16 x 16 mixtures make 4096 routings; expected at most 256"):
        Catalog.blockwise([catalog] * 3)
    with pytest.raises(ValueError, match="at most 15"):
        Catalog.blockwise([Catalog.k_hot("ab")] * 4, limit=15)
    narrow = Catalog.k_hot("ab")
    for per_block in ([], [catalog], [catalog, narrow], [Catalog.blockwise([narrow, narrow])] * 2):
        with pytest.raises(ValueError, match="expected at least two blocks"):
            Catalog.blockwise(per_block)


def test_a_catalog_round_trips_through_files(tmp_path: Path) -> None:
    for catalog in (Catalog.k_hot("abc", 2, 3), Catalog.blockwise([Catalog.k_hot("abc", 0, 3), Catalog.k_hot("abc")])):
        data = catalog.to_dict()
        save_file({"coefficients": data["coefficients"]}, tmp_path / "catalog.safetensors")
        (tmp_path / "names.json").write_text(json.dumps(data["names"]))
        names = json.loads((tmp_path / "names.json").read_text())
        again = Catalog.from_dict({**load_file(tmp_path / "catalog.safetensors"), "names": names})
        assert again.names == catalog.names
        assert torch.equal(again.coefficients, catalog.coefficients)
    with pytest.raises(ValueError, match=r"entries \['names'\]; expected 'coefficients' and 'names'"):
        Catalog.from_dict({"names": names})


def test_families_are_the_sets_of_sources_that_are_open() -> None:
    catalog = Catalog.k_hot(("a", "b", "c"), experts=2, max_sources=2)
    expected = [name.split("/")[0] for name in catalog.names]
    names = catalog.family_names(("a", "b", "c"))
    assert [names[family] for family in catalog.families()] == expected
    assert names == ("a", "b", "c", "a+b", "a+c", "b+c")


def test_families_look_at_what_is_open_whatever_its_weight_and_block() -> None:
    rows = [[0.9, 0.1, 0, 0, 1], [0.1, 0.9, 0, 1, 0], [0, 1, 0, 0, 0], [0, 1, 0, 0.5, 0.5]]
    catalog = Catalog(torch.tensor(rows), ("w", "x", "y", "z"))
    assert catalog.families() == (0, 0, 1, 1)
    assert catalog.family_names(("a", "b", "c")) == ("a+b", "b")
    crossed = Catalog.blockwise([Catalog.k_hot("ab"), Catalog.k_hot("ab")])
    assert crossed.names == ("a | a", "a | b", "b | a", "b | b")
    assert crossed.families() == (0, 1, 1, 2)
    assert crossed.family_names("ab") == ("a", "a+b", "b")
    with pytest.raises(ValueError, match="got 1 names of sources and the catalog opens source number 2"):
        crossed.family_names("a")


def test_every_source_subset_is_told_from_the_experts() -> None:
    """Without being told R; also where the last sources are never opened and where every routing has an expert."""
    members = [(subset, expert) for subset in ((0,), (1,), (0, 1)) for expert in (0, 1)]
    catalog = Catalog.uniform_mixtures("abcd", members, experts=2)
    assert catalog.family_names("abcd") == ("a", "b", "a+b")
    assert catalog.families() == (0, 0, 1, 1, 2, 2)


def test_costs_are_paid_for_what_is_open_whatever_its_weight() -> None:
    coefficients = torch.tensor([[[0.5, 0.5, 0.0, 1.0], [0.001, 0.0, 0.999, 0.0]], [[1.0, 0, 0, 0], [0, 0, 0, 0]]])
    costs = torch.tensor([1.0, 10.0, 100.0, 1000.0])
    assert routing_costs(coefficients, costs).tolist() == [[1011.0, 101.0], [1.0, 0.0]]
    assert routing_costs(coefficients[0, 0], costs).shape == ()
