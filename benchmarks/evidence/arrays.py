"""Pictures to one file a domain: duplicates out, rows in the order of the splits, written whole or not at all.

Between the files in ``domains/`` and `suite`. The file is a safetensors file: ``images`` (N, 3, 64, 64) uint8,
``labels`` (N, A) int64, and one JSON object of what is known of them.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from archives import sha256
from pictures import Domain, Picture
from safetensors.torch import save_file
from suite import SPLITS, Split


def write_domain(
    path: Path, domain: Domain, split: Split, pictures: Iterable[Picture], archives: Mapping[str, Path]
) -> dict[str, Any]:
    """Write ``path`` and return what the file says of itself.

    An image that is there twice stays once; one that is there under two classes goes altogether, so that no image is in
    two splits.

    Raises:
        ValueError: for a class of the split that has fewer images than the domain wants.
    """
    kept, left_out = _without_duplicates(pictures)
    place = {name: k for k, name in enumerate(split.every)}
    column = domain.attributes.index(split.attribute)
    kept.sort(key=lambda picture: (place[picture.values[column]], picture.values[0], picture.name))
    _check(domain, split, kept, column)
    names = [list(dict.fromkeys(picture.values[a] for picture in kept)) for a in range(len(domain.attributes))]
    codes = [{name: k for k, name in enumerate(of_attribute)} for of_attribute in names]
    images = np.stack([picture.pixels for picture in kept]).transpose(0, 3, 1, 2)
    labels = [[codes[a][value] for a, value in enumerate(picture.values)] for picture in kept]
    said = {
        "domain": domain.name,
        "attributes": list(domain.attributes),
        "class_names": names,
        "rows": (rows := _rows(split, [picture.values[column] for picture in kept])),
        "classes": {part: len({p.values[0] for p in kept[slice(*where)]}) for part, where in rows.items()},
        "left_out_as_duplicates": left_out,
        "licences": domain.licences,
        "archives": {archive.name: sha256(archive) for archive in archives.values()},
        "split_sha256": split_digest(split),
        "images_sha256": hashlib.sha256(np.ascontiguousarray(images).data).hexdigest(),
    }
    save_domain(path, torch.from_numpy(np.ascontiguousarray(images)), torch.tensor(labels), said)
    return said


def save_domain(path: Path, images: torch.Tensor, labels: torch.Tensor, said: Mapping[str, Any]) -> None:
    """Write beside the target and rename."""
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        # One key: safetensors writes several in no fixed order, and the same archives have to give the same bytes.
        save_file({"images": images, "labels": labels}, partial, metadata={"about": json.dumps(said)})
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def split_digest(split: Split) -> str:
    """SHA-256 of the names and their splits."""
    return hashlib.sha256(json.dumps([split.attribute, split.names]).encode()).hexdigest()


def _without_duplicates(pictures: Iterable[Picture]) -> tuple[list[Picture], int]:
    groups: dict[bytes, list[Picture]] = defaultdict(list)
    for picture in pictures:
        groups[hashlib.sha256(np.ascontiguousarray(picture.pixels).data).digest()].append(picture)
    one_class = [group for group in groups.values() if len({picture.values[0] for picture in group}) == 1]
    kept = [min(group, key=lambda picture: picture.name) for group in one_class]
    return kept, sum(map(len, groups.values())) - len(kept)


def _check(domain: Domain, split: Split, kept: list[Picture], column: int) -> None:
    counts: dict[str, int] = defaultdict(int)
    for picture in kept:
        counts[picture.values[0]] += 1
    found = {picture.values[column] for picture in kept}
    missing = [name for name in split.every if name not in found]
    small = {name: count for name, count in counts.items() if count < domain.least}
    if missing or small:
        raise ValueError(
            f"domain {domain.name}: no images of {missing[:8]}, too few of {dict(list(small.items())[:8])}; expected "
            f"at least {domain.least} of every class: are the archives whole?"
        )


def _rows(split: Split, values: list[str]) -> dict[str, tuple[int, int]]:
    """First row and the row after the last of each split."""
    of = {name: part for part in SPLITS for name in split.names[part]}
    parts = [of[value] for value in values]
    return {part: (parts.index(part), len(parts) - parts[::-1].index(part)) for part in SPLITS if part in parts}
