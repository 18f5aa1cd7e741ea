"""Which emoji sub-categories train, validate and test: one frozen table, the same for every vendor.

Read by `emoji_vendors`. The table holds every non-flag sub-category (the ``subcategory`` field of emoji.json) with at
least `MINIMUM_MEMBERS` emojis that all vendors draw, counting only emojis that are not joined sequences: a joined
sequence (code point 200d) repeats a picture with another gender, hair or colour, so that a near-copy of a support image
would be a query image. That leaves 50 sub-categories and 1,084 images a vendor.

The split 28 / 9 / 13 was dealt once, category by category (food, objects, faces, ...) so that each split holds a bit of
everything, within a category in the order of the SHA-256 of the name. It is written out here because a benchmark whose
classes move is not a benchmark.
"""

from __future__ import annotations

from collections.abc import Mapping

MINIMUM_MEMBERS = 12

SPLIT: Mapping[str, tuple[str, ...]] = {
    "train": (
        "game",
        "sport",
        "plant-flower",
        "animal-marine",
        "animal-mammal",
        "drink",
        "food-sweet",
        "food-asian",
        "mail",
        "clothing",
        "light & video",
        "book-paper",
        "household",
        "person-sport",
        "person-role",
        "person-activity",
        "face-smiling",
        "heart",
        "face-neutral-skeptical",
        "keycap",
        "geometric",
        "transport-sign",
        "alphanum",
        "av-symbol",
        "zodiac",
        "time",
        "sky & weather",
        "place-building",
    ),
    "val": (
        "animal-bird",
        "plant-other",
        "food-prepared",
        "tool",
        "person-fantasy",
        "emotion",
        "religion",
        "other-symbol",
        "transport-air",
    ),
    "test": (
        "event",
        "animal-bug",
        "food-fruit",
        "food-vegetable",
        "office",
        "computer",
        "person",
        "body-parts",
        "face-concerned",
        "warning",
        "arrow",
        "place-other",
        "transport-ground",
    ),
}


def folder_name(subcategory: str) -> str:
    """Name of a class folder: ``"sky & weather"`` becomes ``"sky-and-weather"``."""
    return subcategory.replace(" & ", "-and-").replace(" ", "-")
