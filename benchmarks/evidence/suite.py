"""The suite's arrays as image pools: `load_pool` for one domain and split, `load_split` for several domains at once.

    pool = load_pool("data/suite", "emoji", "router")
    everything = load_split("data/suite", "router", TRAINED)      # one pool, four domains

A file is read as far as it is needed: rows are in the order of the splits, a split is one slice.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pyro_smat.episodes.pool import ImagePool

SPLITS = ("sources", "router", "validation", "test")
TRAINED = ("emoji", "glyph", "texture", "clipart")
UNSEEN = ("aenigma", "fashion", "mnist", "tuxpaint")
GENERALIST = "generalist"
SOURCES = ("imagenet", *TRAINED, GENERALIST)  # the fallback first

_SPLIT_FILES = Path(__file__).parent / "splits"


@dataclass(frozen=True)
class Split:
    """Which names belong to which split.

    Attributes:
        attribute: whose names they are, "class" or "script".
        names: by split; a split that a domain does not have is empty.
    """

    attribute: str
    names: dict[str, tuple[str, ...]]

    @classmethod
    def of(cls, domain: str) -> Split:
        """What ``splits/<domain>.json`` says.

        Raises:
            ValueError: for a name that is in two splits.
        """
        said = json.loads((_SPLIT_FILES / f"{domain}.json").read_text(encoding="utf-8"))
        names = {split: tuple(said.get(split, ())) for split in SPLITS}
        every = [name for group in names.values() for name in group]
        if len(set(every)) < len(every):
            twice = sorted({name for name in every if every.count(name) > 1})
            raise ValueError(f"splits/{domain}.json has {twice} more than once; expected every name in one split")
        return cls(said["attribute"], names)

    @property
    def every(self) -> tuple[str, ...]:
        """All names, in the order of the splits."""
        return tuple(name for split in SPLITS for name in self.names[split])


def load_pool(folder: str | Path, domain: str, split: str, attributes: Sequence[str] | None = ("class",)) -> ImagePool:
    """The images of one split of one domain.

    Args:
        folder: what ``data.py --out`` wrote.
        domain: one of `TRAINED` or `UNSEEN`.
        split: one of `SPLITS`; an unseen domain has only "test".
        attributes: which labellings the pool has. A sampler draws its tasks from all of them unless told otherwise, so
            only the class by default; None for all (vendors of emojis, scripts and styles of glyphs, fonts).

    Raises:
        ValueError: for another split or domain, or a file that is missing or was not made by ``data.py``.
    """
    about, arrays, rows = _read(Path(folder) / f"{domain}.safetensors", domain, split)
    chosen = about["attributes"] if attributes is None else list(attributes)
    if unknown := [name for name in chosen if name not in about["attributes"]]:
        raise ValueError(f"{domain} has no attributes {unknown}; expected some of {about['attributes']}")
    labels, names = [], []
    for attribute in chosen:
        column = about["attributes"].index(attribute)
        present, codes = arrays["labels"][:, column].unique(return_inverse=True)
        labels.append(codes)
        names.append(tuple(about["class_names"][column][k] for k in present.tolist()))
    return ImagePool(
        images=arrays["images"],
        labels=torch.stack(labels, 1),
        attributes=tuple(chosen),
        class_names=tuple(names),
        domain=torch.zeros(rows, dtype=torch.long),
        domain_names=(domain,),
    )


def load_split(folder: str | Path, split: str, domains: Sequence[str]) -> ImagePool:
    """One pool of several domains: classes are named ``"emoji/food-fruit"``, an episode stays inside a domain.

    Args:
        folder, split: as in `load_pool`.
        domains: in this order.
    """
    pools = [load_pool(folder, domain, split) for domain in domains]
    starts = [sum(len(pool.class_names[0]) for pool in pools[:k]) for k in range(len(pools))]
    return ImagePool(
        images=torch.cat([pool.images for pool in pools]),
        labels=torch.cat([pool.labels + start for pool, start in zip(pools, starts, strict=True)]),
        attributes=("class",),
        class_names=(tuple(f"{d}/{n}" for d, p in zip(domains, pools, strict=True) for n in p.class_names[0]),),
        domain=torch.cat([torch.full((len(pool),), k) for k, pool in enumerate(pools)]),
        domain_names=tuple(domains),
    )


def about(folder: str | Path, domain: str) -> dict[str, Any]:
    """What a file says of itself: attributes, names, counts, licences, digests."""
    with _opened(Path(folder) / f"{domain}.safetensors") as file:
        said: dict[str, Any] = json.loads((file.metadata() or {})["about"])
    return said


def load_arrays(folder: str | Path, domain: str) -> tuple[Tensor, Tensor]:
    """All images ``(N, 3, 64, 64)`` uint8 and labels ``(N, A)`` of a domain."""
    with _opened(Path(folder) / f"{domain}.safetensors") as file:
        return file.get_tensor("images"), file.get_tensor("labels")


def _opened(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except (OSError, SafetensorError) as error:
        raise ValueError(
            f"{path} cannot be read ({error}); make it with `python benchmarks/evidence/data.py --out {path.parent}`"
        ) from error


def _read(path: Path, domain: str, split: str) -> tuple[dict[str, Any], dict[str, Tensor], int]:
    with _opened(path) as file:
        said = json.loads((file.metadata() or {}).get("about", "{}"))
        if said.get("domain") != domain or split not in said["rows"]:
            raise ValueError(
                f"{path} holds {said.get('domain')!r} with the splits {list(said.get('rows', {}))}; expected "
                f"{domain!r} with {split!r}"
            )
        start, stop = said["rows"][split]
        arrays = {name: file.get_slice(name)[start:stop] for name in ("images", "labels")}
    return said, arrays, stop - start
