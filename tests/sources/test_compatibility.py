"""The compatibility report: every kind of issue, every verdict, and nothing read."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from tiny_sources import WatchedCheckpoint, network, weights
from torch import Tensor, nn

from pyro_smat.networks.parameters import ParameterSpace
from pyro_smat.sources import SourceLibrary, check_compatibility
from pyro_smat.sources.compatibility import SourceVerdict

State = dict[str, Tensor]


class Language(nn.Module):
    """Embedding, positions, a layer, a language model's head."""

    def __init__(self, words: int = 7, length: int = 5, tie: bool = False) -> None:
        super().__init__()
        self.embed = nn.Embedding(words, 4)
        self.pos_embedding = nn.Parameter(torch.zeros(1, length, 4))
        self.layer = nn.Linear(4, 4)
        self.lm_head = nn.Linear(4, words, bias=False)
        if tie:
            self.lm_head.weight = self.embed.weight


def only(module: nn.Module, state: State, **options: object) -> SourceVerdict:
    report = check_compatibility(module, {"x": state}, **options)  # type: ignore[arg-type]
    assert all(issue.remedy for source in report.sources for issue in source.issues)
    return report.sources[0]


def fatal(verdict: SourceVerdict) -> set[tuple[str, str]]:
    return {(issue.kind, issue.tensor) for issue in verdict.issues if issue.fatal}


def notes(verdict: SourceVerdict) -> set[tuple[str, str]]:
    return {(issue.kind, issue.tensor) for issue in verdict.issues if not issue.fatal}


def test_a_checkpoint_of_the_network_fits_and_nothing_is_read() -> None:
    checkpoints = {name: WatchedCheckpoint(weights(seed), readable=False) for seed, name in enumerate("abc")}
    report = check_compatibility(network().to("meta"), checkpoints)
    assert report.fits
    assert [source.verdict for source in report.sources] == ["fits"] * 3
    assert notes(report.sources[0]) == {("integer buffer", "1.num_batches_tracked")}
    assert fatal(report.sources[0]) == set()
    text = str(report)
    assert "8 tensors are mixed" in text
    assert text.count("num_batches_tracked") == 1  # the same issue of all sources is said once
    report.raise_unless_fits()


class Masked(nn.Module):
    """A layer whose outputs are pruned, and a counter."""

    def __init__(self, *kept: bool) -> None:
        super().__init__()
        self.layer = nn.Linear(2, len(kept))
        self.register_buffer("kept", torch.tensor(kept))
        self.register_buffer("steps", torch.tensor(len(kept) + sum(kept)))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) * self.kept


def test_tables_of_integers_that_differ_are_refused_and_counters_are_not() -> None:
    network = Masked(True, False, True)
    assert only(network, Masked(True, False, True).state_dict()).fits
    other = only(network, Masked(True, True, True).state_dict())
    assert fatal(other) == {("constant", "kept")}
    with pytest.raises(ValueError, match="kept has other values than the network, where it is a constant: bool is not"):
        SourceLibrary.from_files(network, {"a": network, "b": Masked(True, True, True)})
    assert only(network, Masked(True, True, True).state_dict(), ignore=("kept",)).fits
    assert only(network.to("meta"), Masked(True, True, True).state_dict()).fits  # nobody knows its values


def test_integer_buffers_are_constants_whether_the_file_has_them_or_not() -> None:
    state = weights(1)
    del state["1.num_batches_tracked"]
    assert only(network(), state).issues == ()
    state["ids"] = torch.arange(3)
    assert notes(only(network(), state)) == {("integer buffer", "ids")}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda s: s.pop("0.weight"), {("missing", "0.weight")}),
        (lambda s: s.update({"0.weight": torch.zeros(2, 3, 3, 3)}), {("shape", "0.weight")}),
        (lambda s: s.update({"0.weight": torch.zeros(18)}), {("shape", "0.weight")}),
        (lambda s: s.update({"0.weight": s["0.weight"].to(torch.int8)}), {("dtype", "0.weight")}),
        (lambda s: s.update({"1.running_var": torch.ones(2).bool()}), {("dtype", "1.running_var")}),
    ],
)
def test_what_cannot_be_mixed_does_not_fit(change: Callable[[State], object], expected: set[tuple[str, str]]) -> None:
    state = weights(1)
    change(state)
    verdict = only(network(), state)
    assert fatal(verdict) == expected
    assert (verdict.verdict, verdict.fits) == ("does not fit", False)
    with pytest.raises(ValueError, match=r"source 'x' \(state dict in memory\) does not fit Sequential:\n  "):
        SourceLibrary.from_state_dicts(network(), {"x": state})


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn])
def test_other_floating_dtypes_fit_and_are_mentioned(dtype: torch.dtype) -> None:
    state = weights(1) | {"3.weight": weights(1)["3.weight"].to(dtype)}
    verdict = only(network(), state)
    assert ("dtype", "3.weight") in notes(verdict)
    assert verdict.verdict == "fits"
    library = SourceLibrary.from_state_dicts(network(), {"x": state})
    found = library.space.unflatten(library.basis[0])["3.weight"]
    assert torch.equal(found, state["3.weight"].float())


def test_another_number_of_classes_fits_without_the_head() -> None:
    report = check_compatibility(network(), {"good": weights(0), "more": weights(1, classes=5)})
    assert [source.verdict for source in report.sources] == ["fits", "fits without 3.*"]
    assert fatal(report.sources[1]) == {("shape", "3.weight"), ("shape", "3.bias")}
    assert not report.fits  # until the head is left out
    with pytest.raises(ValueError, match=r"it fits without its head: head=\('3\.\*',\)"):
        report.raise_unless_fits()
    again = check_compatibility(network(), {"good": weights(0), "more": weights(1, classes=5)}, ignore=("3.*",))
    assert again.fits
    assert [source.verdict for source in again.sources] == ["fits without 3.*"] * 2


def test_a_head_that_only_the_files_have_is_extra_and_can_be_left_out() -> None:
    state = weights(1) | {"aux.fc.weight": torch.zeros(2, 2), "aux.fc.bias": torch.zeros(2)}
    verdict = only(network(), state)
    assert fatal(verdict) == {("extra", "aux.fc.weight"), ("extra", "aux.fc.bias")}
    assert verdict.verdict == "fits without aux.*"
    assert only(network(), state, ignore=("aux.*",)).verdict == "fits without aux.*"
    assert only(network(), state, ignore=("aux.*",)).fits
    beside = weights(1) | {"3.scale": torch.zeros(1)}  # not 3.*, which the network has
    assert only(network(), beside).verdict == "fits without 3.scale"


def test_what_is_no_head_is_not_suggested_to_be_left_out() -> None:
    first = weights(1) | {"0.weight": torch.zeros(2, 5, 3, 3)}
    most = weights(1)
    for name in ("1.weight", "1.bias", "1.running_mean", "1.running_var", "3.weight", "3.bias"):
        most[name] = torch.zeros(9, 9)
    deeper = weights(1) | {f"{i}.weight": torch.zeros(8, 8) for i in range(4, 9)}
    assert [only(network(), s).verdict for s in (first, most, deeper)] == ["does not fit"] * 3
    stack = nn.Sequential(nn.Linear(20, 4), nn.Linear(4, 2), nn.Linear(2, 2))
    middle = stack.state_dict() | {"1.weight": torch.zeros(3, 4)}
    assert only(stack, middle).verdict == "does not fit"  # small, but layer 2 comes after it


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_prefixes_are_one_finding_with_the_remedy(prefix: str) -> None:
    state = {prefix + name: tensor for name, tensor in weights(1).items()}
    verdict = only(network(), state)
    assert {kind for kind, _ in fatal(verdict)} == {"prefix"}
    assert "without_wrappers" in next(f.remedy for f in verdict.issues if f.kind == "prefix")
    assert verdict.verdict == "does not fit"
    del state[prefix + "3.bias"]
    assert fatal(only(network(), state)) >= {("missing", "3.bias")}
    assert len(fatal(only(network(), state))) == 2


def test_a_wrapped_network_is_told_apart_from_wrapped_checkpoints() -> None:
    verdict = only(nn.ModuleDict({"module": network()}), weights(1))
    assert {kind for kind, _ in fatal(verdict)} == {"prefix"}
    assert "inside the wrapper" in verdict.issues[0].remedy


def test_tied_tensors_of_the_network_are_named_and_a_file_may_have_them_once() -> None:
    tied = Language(tie=True)
    state = {k: v.clone() for k, v in Language().state_dict().items() if k != "lm_head.weight"}
    report = check_compatibility(tied, {"x": state})
    assert [(f.kind, f.tensor, f.detail) for f in report.network] == [
        ("tied", "lm_head.weight", "is the same tensor as embed.weight")
    ]
    assert report.sources[0].issues == ()
    assert not report.fits
    assert "untie" in str(report)
    with pytest.raises(ValueError, match=r"Language cannot be composed:\n  tied: lm_head\.weight"):
        report.raise_unless_fits()
    with pytest.raises(ValueError, match="tied weights"):
        SourceLibrary.from_state_dicts(tied, {"x": state})


def test_other_vocabularies_and_position_tables_are_called_that() -> None:
    verdict = only(Language(), Language(words=9, length=3).state_dict())
    assert fatal(verdict) == {
        ("vocabulary", "embed.weight"),
        ("positions", "pos_embedding"),
        ("vocabulary", "lm_head.weight"),
    }
    assert verdict.verdict == "does not fit"  # an embedding is no head
    by_kind = {issue.kind: issue.remedy for issue in verdict.issues}
    assert "tokenizer" in by_kind["vocabulary"]
    assert "interpolate" in by_kind["positions"]
    wider = Language().state_dict() | {"pos_embedding": torch.zeros(1, 5, 6)}
    assert fatal(only(Language(), wider)) == {("shape", "pos_embedding")}


def test_nan_is_looked_for_only_on_request() -> None:
    state = weights(1)
    state["1.running_var"][1] = torch.nan
    state["3.bias"][0] = -torch.inf
    state["0.weight"][:] = 3e38  # finite, though their sum is not
    assert only(network(), state).fits
    verdict = only(network(), state, values=True)
    assert fatal(verdict) == {("not finite", "1.running_var"), ("not finite", "3.bias")}
    assert verdict.verdict == "does not fit"


def test_every_problem_of_every_source_is_in_the_table() -> None:
    first, second = weights(1), weights(2)
    del first["3.bias"]
    first["head.weight"] = torch.zeros(2, 2)
    second["0.weight"] = torch.zeros(2, 3, 3, 3)
    text = str(check_compatibility(network(), {"good": weights(), "first": first, "second": second}))
    for part in (
        "missing: 3.bias (3,)",
        "extra: head.weight (2, 2)",
        "shape: 0.weight is (2, 3, 3, 3), expected (2, 1, 3, 3)",
        "float32, int64",
        "-> ",
    ):
        assert part in text
    assert [line.split("  ")[0] for line in text.splitlines()[2:5]] == ["good", "first", "second"]


def test_refused_requests() -> None:
    with pytest.raises(ValueError, match="no sources"):
        check_compatibility(network(), {})
    with pytest.raises(ValueError, match=r"pattern 'fc\.\*' matches no tensor"):
        check_compatibility(network(), {"x": weights()}, ignore=("3.*", "fc.*"))
    with pytest.raises(ValueError, match=r"head is the text '3\.\*'; expected a sequence"):
        check_compatibility(network(), {"x": weights()}, ignore="3.*")
    with pytest.raises(ValueError, match="no parameters outside"):
        check_compatibility(network(), {"x": weights()}, ignore=("*",))


def test_the_template_counts_what_the_parameter_space_has() -> None:
    report = check_compatibility(network(), {"x": weights()})
    space = ParameterSpace.from_module(network())
    assert tuple(report.template.tensors) == space.names
    assert sum(shape.numel() for shape in report.template.tensors.values()) == space.dim
