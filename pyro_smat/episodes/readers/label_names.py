"""What the labels of a dataset are called: as the dataset says it, or as the caller does, and never by guessing.

Datasets say it in many ways: ``classes`` is a list by position, a mapping from names or to names, or a number; a
subset and a concatenation hide those of their parts, whose label 0 need not be the same class. What cannot be read
without doubt is refused, with ``class_names=`` as the remedy.
"""

from __future__ import annotations

import unicodedata
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch.utils.data import ChainDataset, ConcatDataset, Subset

_REMEDY = "pass class_names= a list by position or a mapping of labels to names"
ClassNames = Sequence[str] | Mapping[int, str]


@dataclass(frozen=True)
class LabelNames:
    """Names of labels, by dataset part.

    Attributes:
        parts: for every part the names of its labels.
        ends: number of items of the parts before each, cumulated; empty for a single part.
        rows: of a subset the items that it has, in its order.
    """

    parts: tuple[Mapping[int, str], ...]
    ends: tuple[int, ...] = ()
    rows: Sequence[int] | None = None

    def of_item(self, item: int) -> Mapping[int, str]:
        """Names of the labels of the part that an item is from."""
        row = item if self.rows is None else int(self.rows[item])
        return self.parts[bisect_right(self.ends, row)] if self.ends else self.parts[0]


def label_names(dataset: Any, class_names: ClassNames | None = None) -> LabelNames | None:
    """The names that a dataset, or the caller, gives to labels; None where nobody does.

    Args:
        dataset: any; ``classes`` and ``class_to_idx`` are looked at, also under Subset and ConcatDataset.
        class_names: the caller's own, which count alone.

    Raises:
        ValueError: for names that are no text or repeat, ``classes`` of other numbers than 0, 1, ..., a
            ``target_transform`` beside names (labels are then others), or parts of which some have names.
    """
    if class_names is not None:
        return LabelNames((_mapping(class_names, "class_names"),))
    own = _own(dataset)
    if own is not None:
        return LabelNames((own,))
    if isinstance(dataset, Subset):
        inner = label_names(dataset.dataset)
        if inner is None:
            return None
        rows = dataset.indices if inner.rows is None else [int(inner.rows[i]) for i in dataset.indices]
        return LabelNames(inner.parts, inner.ends, rows)
    if isinstance(dataset, ConcatDataset):
        return _joined(list(dataset.datasets), list(dataset.cumulative_sizes))
    if isinstance(dataset, ChainDataset):
        return _chained(list(dataset.datasets))
    return None


def coded(labels: Sequence[int], names: LabelNames | None) -> tuple[list[int], tuple[str, ...]]:
    """Labels as positions in class names; without names, these are the labels that occur, as text.

    Args:
        labels: of every item.
        names: of the dataset.

    Returns:
        N positions, and the names: all that one part has, in its order, then what the next ones add.

    Raises:
        ValueError: for a label without a name; names the item.
    """
    if names is None:
        found, codes = np.unique(np.asarray(labels, dtype=np.int64), return_inverse=True)
        return codes.tolist(), tuple(str(k) for k in found)
    known: dict[str, int] = {}
    for part in names.parts:
        for label in sorted(part):
            known.setdefault(part[label], len(known))
    positions = []
    for item, label in enumerate(labels):
        of_item = names.of_item(item)
        if label not in of_item:
            if sorted(of_item) == list(range(len(of_item))):
                expected = f"one below {len(of_item)}, the length of dataset.classes"
            else:
                expected = f"one of {sorted(of_item)[:8]}, the labels that have a name"
            raise ValueError(f"item {item} has label {label}; expected {expected}")
        positions.append(known[of_item[label]])
    return positions, tuple(known)


def _own(dataset: Any) -> dict[int, str] | None:
    """What a dataset itself says."""
    classes, index = getattr(dataset, "classes", None), getattr(dataset, "class_to_idx", None)
    kind = type(dataset).__name__
    by_index = _mapping(index, f"{kind}.class_to_idx") if isinstance(index, Mapping) and index else None
    by_class = None if classes is None else _mapping(classes, f"{kind}.classes")
    if by_class is None and by_index is None:
        return None
    if getattr(dataset, "target_transform", None) is not None:
        raise ValueError(
            f"{kind} has names for its classes and a target_transform, which may change the labels; {_REMEDY}, or "
            "leave target_transform out"
        )
    if by_class is not None and by_index is not None and by_class != by_index:
        label = next(k for k in sorted({*by_class, *by_index}) if by_class.get(k) != by_index.get(k))
        raise ValueError(
            f"{kind}.classes calls label {label} {by_class.get(label)!r} and class_to_idx {by_index.get(label)!r}; "
            f"{_REMEDY}"
        )
    return by_class or by_index


def _mapping(names: Any, what: str) -> dict[int, str]:
    """Label to name, from a list by position, name to label, label to name, or a number of classes."""
    if isinstance(names, bool | np.bool_ | str | bytes) or callable(names):
        raise ValueError(f"{what} is {type(names).__name__} {str(names)[:40]!r}; expected names: {_REMEDY}")
    if isinstance(names, int | np.integer):
        return {k: str(k) for k in range(int(names))}
    if isinstance(names, Mapping):
        keys, values = list(names), list(names.values())
        if all(map(_is_label, keys)):
            pairs = [(int(k), _text(v, what)) for k, v in zip(keys, values, strict=True)]
        elif all(map(_is_label, values)):
            pairs = [(int(v), _text(k, what)) for k, v in zip(keys, values, strict=True)]
        else:
            raise ValueError(f"{what} maps {keys[0]!r} to {values[0]!r}; expected names to labels or labels to names")
        found = dict(pairs)
        if len(found) < len(pairs):
            raise ValueError(f"{what} gives two names to one label; expected one for each: {_REMEDY}")
    else:
        if isinstance(names, set | frozenset) or not hasattr(names, "__iter__"):
            raise ValueError(f"{what} is a {type(names).__name__}, which has no order; {_REMEDY}")
        listed = list(names)
        if listed and all(map(_is_label, listed)) and [int(k) for k in listed] != list(range(len(listed))):
            raise ValueError(
                f"{what} are the numbers {listed[:8]}, and it is not clear whether label {listed[0]} is the first of "
                f"them or the class {listed[0]}; {_REMEDY}"
            )
        found = {k: str(int(v)) if _is_label(v) else _text(v, what) for k, v in enumerate(listed)}
    seen: dict[str, int] = {}
    for label, name in found.items():
        if seen.setdefault(name, label) != label:
            raise ValueError(f"{what} calls labels {seen[name]} and {label} both {name!r}; expected different names")
    if not found:
        raise ValueError(f"{what} is empty; expected a name for each class")
    return found


def _joined(parts: list[Any], ends: list[int]) -> LabelNames | None:
    inner = [label_names(part) for part in parts]
    named = [names for names in inner if names is not None]
    if not named:
        return None
    if len(named) < len(inner):
        without = next(i for i, names in enumerate(inner) if names is None)
        raise ValueError(f"part {without} of the ConcatDataset has no names for its classes and others do; {_REMEDY}")
    if all(len(names.parts) == 1 for names in named):
        return LabelNames(tuple(names.parts[0] for names in named), tuple(ends[:-1]))
    # A part is itself a concatenation: one entry for each item.
    per_item: list[Mapping[int, str]] = []
    for names, part in zip(named, parts, strict=True):
        per_item += [names.of_item(i) for i in range(len(part))]
    return LabelNames(tuple(per_item), tuple(range(1, len(per_item))))


def _chained(parts: list[Any]) -> LabelNames | None:
    inner = [label_names(part) for part in parts]
    if all(names is None for names in inner):
        return None
    first = inner[0]
    if first is None or any(names is None or names.parts != first.parts for names in inner):
        raise ValueError(f"the parts of the ChainDataset have different names for their classes; {_REMEDY}")
    return LabelNames(first.parts)


def _is_label(thing: Any) -> bool:
    return isinstance(thing, int | np.integer) and not isinstance(thing, bool | np.bool_)


def _text(name: Any, what: str) -> str:
    """One name; the synonyms of a class (ImageNet) are one name together."""
    if isinstance(name, tuple | list) and name and all(isinstance(part, str) for part in name):
        name = ", ".join(name)
    if not isinstance(name, str) or not name.strip():
        raise ValueError(f"{what} holds {name!r}; expected names as text: {_REMEDY}")
    return unicodedata.normalize("NFC", str(name))
