"""Pools made of pools: fewer images, or a domain's groups as domains."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from suite import load_pool

from pyro_smat.episodes.pool import ImagePool


def first_of_each_class(pool: ImagePool, count: int) -> ImagePool:
    """A pool of the first images of every class."""
    label = pool.labels[:, 0]
    place = torch.zeros_like(label)
    for k in label.unique().tolist():
        place[label == k] = torch.arange(int((label == k).sum()))
    kept = place < count
    return replace(pool, images=pool.images[kept], labels=pool.labels[kept], domain=pool.domain[kept])


def by_attribute(folder: str | Path, domain: str, attribute: str, split: str = "test") -> ImagePool:
    """One domain as several: an image's "domain" is its value of another attribute, such as the vendor of an emoji."""
    pool = load_pool(folder, domain, split, ("class", attribute))
    return ImagePool(
        images=pool.images,
        labels=pool.labels[:, :1],
        attributes=("class",),
        class_names=pool.class_names[:1],
        domain=pool.labels[:, 1],
        domain_names=pool.class_names[1],
    )


def large_classes(pool: ImagePool, least: int) -> list[str]:
    """Names of the classes with at least so many images."""
    counts = pool.labels[:, 0].bincount(minlength=len(pool.class_names[0])).tolist()
    return [name for name, count in zip(pool.class_names[0], counts, strict=True) if count >= least]
