"""Write a data set as a tree of PNG class folders: atomically, with a manifest, left alone once it is complete.

Last step of `prepare.py`: `emoji_vendors` and `fashion_mnist` hand their pictures over here; the folder reader reads
the tree.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from archives import sha256
from PIL import Image

Manifest = dict[str, Any]

MANIFEST = "manifest.json"


def already_made(out: Path, recipe: Mapping[str, Any], *, force: bool) -> Manifest | None:
    """The manifest of a complete ``out`` made by the same recipe, or None where it has to be made.

    Raises:
        ValueError: ``out`` holds something that was not made here (never replaced), was made by another recipe, or has
            lost or gained images (replaced only with ``force``).
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return None
    try:
        manifest: Manifest = json.loads((out / MANIFEST).read_text())
        made_by, files = manifest["recipe"], manifest["files"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{out} exists and was not made by this program: choose another --out or move it away"
        ) from error
    if force:
        return None
    if made_by != recipe:
        raise ValueError(f"{out} was made with {made_by}, now {dict(recipe)} is asked for: --force makes it anew")
    if (found := sum(1 for _ in out.rglob("*.png"))) != files:
        raise ValueError(f"{out} holds {found} images, its {MANIFEST} says {files}: --force makes it anew")
    return manifest


def write_class_folders(
    out: Path,
    pictures: Iterable[tuple[str, Image.Image]],
    *,
    recipe: Mapping[str, Any],
    origins: Sequence[Path],
    licences: Mapping[str, str],
) -> Manifest:
    """Write all pictures below a hidden sibling of ``out``, then rename it into place.

    Args:
        out: the folder to make; one that stands there is replaced (`already_made` has agreed to that).
        pictures: pairs of a path relative to ``out``, whose parent is the class folder, and the picture.
        recipe: the choices that decide what is written, kept in the manifest.
        origins: the archives that the pictures come from; their SHA-256 is kept.
        licences: licence of each domain.

    Returns:
        The manifest: recipe, archives, licences, ``files``, ``files_sha256`` (digest of the sorted list of paths) and
        ``folders`` (classes and images of each folder of classes).
    """
    out = out.absolute()
    out.parent.mkdir(parents=True, exist_ok=True)
    partial, replaced = (out.with_name(f".{out.name}.{word}-{os.getpid()}") for word in ("partial", "replaced"))
    shutil.rmtree(partial, ignore_errors=True)  # what a killed process of the same number left
    partial.mkdir()
    try:
        names: list[str] = []
        for name, picture in pictures:
            target = partial / name
            target.parent.mkdir(parents=True, exist_ok=True)
            picture.save(target, format="PNG", optimize=True)
            names.append(name)
        manifest: Manifest = {
            "recipe": dict(recipe),
            "archives": {path.name: sha256(path) for path in origins},
            "licences": dict(licences),
            "files": len(names),
            "files_sha256": hashlib.sha256("\n".join(sorted(names)).encode()).hexdigest(),
            "folders": _count(names),
        }
        (partial / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
        if out.exists():
            out.replace(replaced)
        partial.replace(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        if replaced.exists() and not out.exists():
            replaced.replace(out)
        shutil.rmtree(replaced, ignore_errors=True)
    return manifest


def summary(out: Path, manifest: Manifest) -> str:
    """A few lines for the terminal: classes and images of each folder of classes, and the licences."""
    lines = [f"{out}: {manifest['files']} images"]
    lines += [
        f"  {folder:<16} {count['classes']:>3} classes {count['images']:>6} images"
        for folder, count in manifest["folders"].items()
    ]
    lines += [f"  licence of {domain}: {licence}" for domain, licence in manifest["licences"].items()]
    return "\n".join(lines)


def _count(names: Sequence[str]) -> dict[str, dict[str, int]]:
    """``{"train/google": {"classes": 28, "images": 649}, ...}``; ``"."`` where the classes are at the top."""
    images = Counter(str(Path(name).parent.parent) for name in names)
    classes = Counter(str(folder.parent) for folder in {Path(name).parent for name in names})
    return {folder: {"classes": classes[folder], "images": images[folder]} for folder in sorted(images)}
