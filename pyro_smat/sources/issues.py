"""Issues: how one checkpoint differs from what a network expects, each with a remedy; headers are enough.

Feeds the compatibility report, and the errors of a library that cannot be opened.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_smat.sources.checkpoint import Checkpoint
from pyro_smat.sources.opening import unwrapped
from pyro_smat.sources.template import Template, matches

_POSITIONS = re.compile(r"pos(ition|itional)?_?embed|embed_positions|(^|\.)wpe\.|relative_position_bias_table")
_VOCABULARY = re.compile(
    r"(^|\.)(lm_head|embed_out|embed_tokens|tok_embeddings|token_embeddings?|word_embeddings|wte|shared)\."
)


@dataclass(frozen=True)
class Issue:
    """One way in which a checkpoint (or the network) is not what is expected.

    Attributes:
        kind: "missing", "extra", "shape", "dtype", "tied", "integer buffer", "vocabulary", "positions", "prefix",
            "constant" or "not finite".
        tensor: its name.
        detail: what was found and what was expected.
        remedy: what to do about it.
        fatal: whether the source cannot be mixed like this; others are worth knowing.
    """

    kind: str
    tensor: str
    detail: str
    remedy: str
    fatal: bool = True

    def __str__(self) -> str:
        return f"{self.kind}: {self.tensor} {self.detail}"


def network_issues(template: Template) -> tuple[Issue, ...]:
    """What keeps the network itself from being composed."""
    return tuple(
        Issue(
            "tied",
            second,
            f"is the same tensor as {first}",
            "untie them in the network (copy the tensor), so that each is mixed by itself",
        )
        for first, second in template.tied
    )


def source_issues(template: Template, checkpoint: Checkpoint) -> tuple[Issue, ...]:
    """What distinguishes a checkpoint from ``template``, by its header alone."""
    expected = {name: name for name in template.tensors}
    stored = {name: name for name in checkpoint.names}
    issues: list[Issue] = []
    bare_expected = {unwrapped(name): name for name in template.tensors}
    bare_stored = {unwrapped(name): name for name in checkpoint.names}
    if len(bare_expected.keys() & bare_stored.keys()) > len(expected.keys() & stored.keys()):
        issues.append(_prefix(template, checkpoint))
        expected, stored = bare_expected, bare_stored
    elif prefix := _common_prefix(template, checkpoint):
        issues.append(_named_prefix(template, checkpoint, prefix))
        stored = {unwrapped(k).removeprefix(prefix): k for k in checkpoint.names if unwrapped(k).startswith(prefix)}
    twins = dict(template.tied) | {second: first for first, second in template.tied}
    for name, own in expected.items():
        if name not in stored:
            if twins.get(own) not in stored:
                issues.append(_missing(own, template.tensors[own]))
            continue
        there = stored[name]
        if (shape := checkpoint.shape(there)) != template.tensors[own]:
            issues.append(_shape(own, shape, template))
        elif (dtype := checkpoint.dtype(there)) != torch.float32:
            issues.append(_dtype(there, dtype))
    for name, there in stored.items():
        if name in expected or matches(there, *template.head):
            continue
        dtype = checkpoint.dtype(there)
        if not (dtype.is_floating_point or dtype.is_complex):
            issues.append(
                Issue("integer buffer", there, f"is {_plain(dtype)}", "none needed: it is not mixed", fatal=False)
            )
        elif there not in template.constants:
            issues.append(_extra(there, checkpoint.shape(there)))
    return tuple(issues)


def constant_issues(template: Template, checkpoint: Checkpoint) -> Iterator[Issue]:
    """Buffers of the network that are not mixed and of which a checkpoint has other values; reads these alone."""
    for name, own in template.fixed.items():
        if name not in checkpoint.names:
            continue
        shape = checkpoint.shape(name)
        if shape != own.shape:
            detail = f"is {tuple(shape)}, that of the network is {tuple(own.shape)}"
        elif not torch.equal(checkpoint.read(name).to(own.dtype), own.cpu()):
            why = "it holds infinite values" if own.is_floating_point() else f"{_plain(own.dtype)} is not mixed"
            detail = f"has other values than the network, where it is a constant: {why}"
        else:
            continue
        baked = "" if own.is_floating_point() else ", put a mask into the weights that it masks"
        remedy = f"build the network as the source was{baked}, or leave the buffer out (head=)"
        yield Issue("constant", name, detail, remedy)


def value_issues(template: Template, checkpoint: Checkpoint) -> Iterator[Issue]:
    """Tensors with NaN or infinite weights; reads all weights, one tensor at a time."""
    for name in checkpoint.names:
        if name in template.tensors and not is_finite(checkpoint.read(name)):
            yield Issue("not finite", name, "holds NaN or infinite weights", "train it again, or leave the source out")


def is_finite(tensor: Tensor) -> bool:
    """Whether all of a tensor's values are; one sum decides, unless it overflows."""
    values = tensor.float()
    return bool(torch.isfinite(values.sum())) or bool(torch.isfinite(values).all())


def suggested_head(template: Template, checkpoint: Checkpoint, issues: tuple[Issue, ...]) -> tuple[str, ...]:
    """Patterns without which a source that does not fit would fit; () when there are none.

    Only a head is worth leaving out: tensors that are missing or misshapen must all lie in the last modules of the
    network, and what is left out must be less than half of the network's and of the checkpoint's weights.
    """
    fatal = [f for f in issues if f.fatal]
    if not fatal or {f.kind for f in fatal} - {"missing", "shape", "vocabulary", "extra"}:
        return ()
    own = {f.tensor for f in fatal if f.kind != "extra"}
    parents = {_parent(name) for name in own}
    names = list(template.tensors)
    start = min((i for i, name in enumerate(names) if _parent(name) in parents), default=len(names))
    left_out = names[start:]
    if any(_parent(name) not in parents for name in left_out):
        return ()
    extra = {f.tensor: checkpoint.shape(f.tensor) for f in fatal if f.kind == "extra"}
    whole = {name: checkpoint.shape(name) for name in checkpoint.names}
    if 2 * _count(template.tensors, left_out) >= _count(template.tensors) or 2 * _count(extra) >= _count(whole):
        return ()
    patterns = {f"{_parent(name)}.*" if _parent(name) else name: None for name in left_out}
    patterns |= {_outermost(name, template): None for name in extra}
    return tuple(patterns)


def _prefix(template: Template, checkpoint: Checkpoint) -> Issue:
    wrapped = next((name for name in checkpoint.names if unwrapped(name) != name), None)
    if wrapped is not None and any(unwrapped(name) in template.tensors for name in checkpoint.names):
        return Issue(
            "prefix",
            wrapped,
            "has the prefix of DistributedDataParallel (module.), torch.compile (_orig_mod.) or another wrapper",
            "open it with pyro_smat.sources.without_wrappers(path); better, save the network inside the wrapper",
        )
    own = next(name for name in template.tensors if unwrapped(name) != name)
    return Issue(
        "prefix",
        own,
        "of the network has the prefix of DistributedDataParallel (module.) or torch.compile (_orig_mod.)",
        "pass the network inside the wrapper (.module or ._orig_mod)",
    )


def _common_prefix(template: Template, checkpoint: Checkpoint) -> str:
    """What stands before the network's names in a checkpoint, where most of them are there and hardly any without."""
    found: Counter[str] = Counter()
    for name in map(unwrapped, checkpoint.names):
        places = (i + 1 for i, letter in enumerate(name) if letter == ".")
        found.update(name[:i] for i in places if name[i:] in template.tensors)
    if not found:
        return ""
    prefix, count = found.most_common(1)[0]
    known = len(template.tensors.keys() & set(map(unwrapped, checkpoint.names)))
    return prefix if 2 * count > len(template.tensors) and count > known else ""


def _named_prefix(template: Template, checkpoint: Checkpoint, prefix: str) -> Issue:
    first = next(name for name in checkpoint.names if unwrapped(name).startswith(prefix))
    return Issue(
        "prefix",
        first,
        f"has the prefix {prefix!r} before the names of the network, as Lightning and modules around a network give",
        f"open it with pyro_smat.sources.without_wrappers(path, {prefix!r}); better, save the network itself",
    )


def _missing(name: str, shape: torch.Size) -> Issue:
    remedy = "save the whole state dict of this network, or leave the tensor out (head=) if it belongs to a head"
    return Issue("missing", name, f"{tuple(shape)}", remedy)


def _extra(name: str, shape: torch.Size) -> Issue:
    remedy = "remove it from the checkpoint, or leave it out (head=) if the network does without"
    return Issue("extra", name, f"{tuple(shape)}", remedy)


def _shape(name: str, found: torch.Size, template: Template) -> Issue:
    expected = template.tensors[name]
    detail = f"is {tuple(found)}, expected {tuple(expected)}"
    same_rank = len(found) == len(expected)
    if same_rank and _POSITIONS.search(name) and found[-1] == expected[-1]:
        remedy = (
            "build the network for the source's image size or sequence length, or interpolate the source's table "
            "to the network's"
        )
        return Issue("positions", name, detail, remedy)
    if same_rank and found[1:] == expected[1:] and (name in template.embeddings or _VOCABULARY.search(name)):
        remedy = (
            "give all sources one vocabulary: map rows by token from the source's tokenizer to the network's, and "
            "add or cut the others"
        )
        return Issue("vocabulary", name, detail, remedy)
    remedy = "if it is a head, leave it out (head=); else open the source with the network that it was saved from"
    return Issue("shape", name, detail, remedy)


def _dtype(name: str, dtype: torch.dtype) -> Issue:
    if dtype == torch.float64:
        return Issue("dtype", name, "is float64", "none needed: rounded to float32 when read", fatal=False)
    if dtype.is_floating_point:
        return Issue("dtype", name, f"is {_plain(dtype)}", "none needed: read as float32, exactly", fatal=False)
    remedy = "dequantise it with the tool that wrote it, or compress the floating-point source (form='int8')"
    return Issue("dtype", name, f"is {_plain(dtype)}, expected floating point", remedy)


def _plain(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _parent(name: str) -> str:
    return name.rpartition(".")[0]


def _outermost(name: str, template: Template) -> str:
    """The pattern of the largest module around a tensor that the network has nothing of."""
    parts = name.split(".")
    for end in range(1, len(parts)):
        prefix = ".".join(parts[:end]) + "."
        if not any(own.startswith(prefix) for own in template.tensors):
            return prefix + "*"
    return name


def _count(shapes: Mapping[str, torch.Size], names: list[str] | None = None) -> int:
    return sum(shapes[name].numel() for name in (shapes if names is None else names))
