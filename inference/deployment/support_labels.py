"""Labels as people bring them: whatever can be hashed goes in, and comes back as the names of classes.

:meth:`RoutedClassifier.adapt` reads its labels here; images are read in ``inputs.py``.
"""

from __future__ import annotations

import itertools
import numbers
from collections.abc import Hashable, Iterable, Mapping, Sequence, Set
from typing import Any

import numpy as np
import torch
from torch import Tensor

_EXPECTED = "expected one label for each image: names, numbers, anything that can be hashed, or one-hot rows"


def read_labels(labels: Any, count: int) -> tuple[list[Hashable], tuple[Hashable, ...]]:
    """The label of every image, and the classes: sorted where they can be, else in order of appearance.

    Args:
        labels: ``count`` values in a list, tensor, array or column; or one-hot rows ``(count, W)``, whose classes are
            the numbers of the columns, or their names in a DataFrame (as of ``pandas.get_dummies``). NumPy and PyTorch
            scalars become Python's, but dates and durations of NumPy, which Python has only in part.
        count: how many images there are.

    Raises:
        ValueError: for missing labels (None, NaN), negative integers (which mark images without a label: -1 here and in
            scikit-learn, -100 in PyTorch) but for the two classes -1 and 1, text among numbers, rows that are not
            one-hot, another number of labels than of images, or fewer than two classes.

    Example:
        >>> read_labels([7, 3, 7, 3], 4)
        ([7, 3, 7, 3], (3, 7))
        >>> read_labels(torch.tensor([[0, 1], [1, 0]]), 2)
        ([1, 0], (0, 1))
    """
    values = [_plain(value) for value in _listed(labels)]
    if values and all(isinstance(value, list) for value in values):
        wide = len(values[0]) > 1
        values = _from_rows(values)
        if wide and hasattr(labels, "columns"):
            names = [_plain(name) for name in labels.columns]
            values = [names[place] for place in values]
    missing = [i for i, value in enumerate(values) if _is_missing(value)]
    if missing:
        raise ValueError(
            f"labels {missing[:8]} are missing ({values[missing[0]]!r}); expected a label for every image: leave these "
            "images out"
        )
    negative = [i for i, value in enumerate(values) if _is_whole(value) and value < 0]
    if negative and all(map(_is_whole, values)) and {*values} != {-1, 1}:  # the two classes of a binary classifier
        raise ValueError(
            f"labels {negative[:8]} are negative ({values[negative[0]]!r}), which marks images without a label; "
            "expected integers of at least 0: leave these images out, or, where it is a class, map labels to names "
            "([str(label) for label in labels])"
        )
    for i, value in enumerate(values):
        try:
            hash(value)
        except Exception as error:  # of any class that a person wrote
            raise ValueError(f"labels[{i}] is a {type(value).__name__}, which cannot be hashed; {_EXPECTED}") from error
    kinds = {_kind(value): value for value in values}
    if len(kinds) > 1:
        found = ", ".join(f"{value!r:.40} ({kind})" for kind, value in kinds.items())
        raise ValueError(f"labels are of more than one kind: {found}; expected text or numbers, not both")
    if len(values) != count:
        raise ValueError(f"got {count} images and {len(values)} labels; expected one label for each image")
    classes = _ordered(values)
    if len(classes) < 2:
        raise ValueError(f"labels: the support has the one class {classes[0]!r:.80}; expected at least two classes")
    return values, classes


def _listed(labels: Any) -> list[Any]:
    """One entry an image, as far as the container says so."""
    if isinstance(labels, Tensor):
        if labels.is_meta or labels.layout != torch.strided:
            raise ValueError(f"labels are a tensor of layout {labels.layout} on {labels.device}; {_EXPECTED}")
        labels = labels.detach().cpu()
        labels = labels.float().numpy() if labels.dtype == torch.bfloat16 else labels.numpy()
    elif isinstance(labels, str | bytes | bytearray | Mapping | Set) or not isinstance(labels, Iterable):
        raise ValueError(f"labels is a {type(labels).__name__}, {labels!r:.60}; {_EXPECTED}")
    if hasattr(labels, "to_numpy"):  # a Series or DataFrame
        labels = labels.to_numpy()
    if isinstance(labels, np.ndarray):
        if labels.ndim == 2 and labels.shape[1] == 1:
            labels = labels[:, 0]
        if labels.ndim not in (1, 2):
            raise ValueError(f"labels have shape {labels.shape}; {_EXPECTED}")
        return list(labels) if labels.dtype.kind in "Mm" and labels.ndim == 1 else list(labels.tolist())
    try:
        return list(labels)
    except Exception as error:  # an iterator of a person's own
        raise ValueError(f"labels cannot be listed ({type(error).__name__}: {error}); {_EXPECTED}") from error


def _plain(value: Any) -> Any:
    """Scalars of NumPy and PyTorch as Python's; their vectors as lists. Dates stay: Python's have no nanoseconds."""
    if isinstance(value, Tensor):
        if value.is_meta or value.layout != torch.strided:
            raise ValueError(f"labels hold a tensor of layout {value.layout} on {value.device}; {_EXPECTED}")
        return value.tolist()
    if isinstance(value, np.datetime64 | np.timedelta64):
        return value
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value


def _from_rows(rows: Sequence[Any]) -> list[Any]:
    """The place of the one in every one-hot row."""
    try:
        table = np.array(rows, dtype=float)
    except (TypeError, ValueError) as error:
        raise ValueError(f"labels are rows that are not one-hot, {rows[0]!r:.60} the first; {_EXPECTED}") from error
    if table.ndim == 2 and table.shape[1] == 1:
        return [row[0] for row in rows]
    if table.ndim != 2 or not (np.isin(table, (0, 1)).all() and (table.sum(1) == 1).all()):
        raise ValueError(f"labels are rows that are not one-hot, {rows[0]!r:.60} the first; {_EXPECTED}")
    return list(table.argmax(1).tolist())


def _is_missing(value: Any) -> bool:
    if value is None or type(value).__name__ in ("NAType", "NaTType"):  # of pandas
        return True
    if isinstance(value, np.datetime64 | np.timedelta64):
        return bool(np.isnat(value))
    return isinstance(value, float | complex) and value != value


def _is_whole(value: Any) -> bool:
    """Integers, and floats that stand for them."""
    return isinstance(value, int) or (isinstance(value, float) and value.is_integer())


def _kind(value: Any) -> str:
    """What may stand beside each other: True is not 1, and "1" is neither."""
    for kind, types in (("bool", bool), ("text", str), ("bytes", bytes), ("number", numbers.Number)):
        if isinstance(value, types):
            return kind
    return "object"


def _ordered(values: Sequence[Any]) -> tuple[Any, ...]:
    try:
        found = list(dict.fromkeys(values))
        ordered = sorted(found)
        total = all(a < b for a, b in itertools.pairwise(ordered))  # sets compare without an order
    except Exception:  # comparisons of a person's own class raise what they like
        return tuple(dict.fromkeys(values))
    return tuple(ordered) if total else tuple(found)
