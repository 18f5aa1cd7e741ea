"""A small copy of the suite for another machine: sheets of lossless WebP in a zip file that unpack to the same bytes.

Grey pictures that were scaled from 28 px are kept at 28 px, with what scaling does not give back (`enlarged`). `unpack`
checks the digest of each domain.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from pathlib import Path

import numpy as np
import torch
from arrays import save_domain
from enlarged import joined, split
from numpy.typing import NDArray
from PIL import Image
from suite import TRAINED, UNSEEN, about, load_arrays

_ACROSS = 16
_ON_A_SHEET = _ACROSS * 16
_SCALED = ("fashion", "mnist")  # from 28 px
_METHOD = {"": 6, "small": 4, "rest": 4}  # of WebP: 6 takes 40 times as long as 4 and saves 2 to 9% of coloured sheets


def pack(folder: Path, domains: list[str], target: Path) -> int:
    """Write ``target`` and return its size in bytes."""
    partial = target.with_name(f".{target.name}.partial")
    try:
        with zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as archive:
            for domain in domains:
                said = about(folder, domain)
                images, labels = load_arrays(folder, domain)
                _add(archive, f"{domain}/about.json", json.dumps(said).encode())
                _add(archive, f"{domain}/labels.json", json.dumps(labels.tolist()).encode())
                for start in range(0, len(images), _ON_A_SHEET):
                    for kind, sheet in _parts(domain, images[start : start + _ON_A_SHEET].numpy()).items():
                        _add(archive, f"{domain}/{kind}{start:06d}.webp", _encoded(_sheet(sheet), _METHOD[kind]))
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
    return target.stat().st_size


def unpack(source: Path, folder: Path) -> list[str]:
    """Write the arrays of ``source`` into ``folder`` and return the names of the domains.

    Raises:
        ValueError: for a file that `pack` did not write, or images that come out differently.
    """
    try:
        with zipfile.ZipFile(source) as archive:
            members = sorted(archive.namelist())
            domains = list(dict.fromkeys(member.partition("/")[0] for member in members))
            for domain in domains:
                if domain not in TRAINED + UNSEEN or f"{domain}/about.json" not in members:
                    raise ValueError(f"{source} holds {members[:3]}; expected a file that data.py --pack wrote")
                said = json.loads(archive.read(f"{domain}/about.json"))
                labels = torch.tensor(json.loads(archive.read(f"{domain}/labels.json")))
                # Older copies have 64 px of all domains.
                kinds = ("small", "rest") if f"{domain}/small000000.webp" in members else ("",)
                parts = {kind: _read(archive, members, f"{domain}/{kind}", len(labels)) for kind in kinds}
                images = _whole(parts)
                images = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
                if (found := hashlib.sha256(images.data).hexdigest()) != said["images_sha256"]:
                    raise ValueError(f"{source}: images of {domain} have SHA-256 {found}; expected the packed ones")
                save_domain(folder / f"{domain}.safetensors", torch.from_numpy(images), labels, said)
    except (zipfile.BadZipFile, KeyError) as error:
        raise ValueError(f"{source} is no file that data.py --pack wrote ({error})") from error
    return domains


def _add(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    kind = zipfile.ZIP_STORED if name.endswith(".webp") else zipfile.ZIP_DEFLATED
    archive.writestr(zipfile.ZipInfo(name), content, kind)  # no date: the same arrays give the same bytes


def _parts(domain: str, images: NDArray[np.uint8]) -> dict[str, NDArray[np.uint8]]:
    """What is stored of images ``(n, 3, 64, 64)``: name -> ``(n, side, side, 3)``."""
    if domain not in _SCALED:
        return {"": images.transpose(0, 2, 3, 1)}
    if (images != images[:, :1]).any():
        raise ValueError(f"{domain} holds coloured images; expected grey ones, make it anew: data.py --force")
    small, rest = split(images[:, 0])
    return {"small": _coloured(small), "rest": _coloured(rest)}


def _whole(parts: dict[str, NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """Images ``(n, 64, 64, 3)`` from what is stored of them."""
    return _coloured(joined(parts["small"][..., 0], parts["rest"][..., 0])) if "small" in parts else parts[""]


def _coloured(grey: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.repeat(grey[..., None], 3, axis=-1)


def _read(archive: zipfile.ZipFile, members: list[str], prefix: str, count: int) -> NDArray[np.uint8]:
    """The pictures of all sheets whose names begin so."""
    sheets = [m for m in members if m.startswith(prefix) and m.removeprefix(prefix).removesuffix(".webp").isdigit()]
    if not sheets:
        raise ValueError(
            f"{archive.filename} holds no sheets {prefix}*.webp; expected a file that data.py --pack wrote"
        )
    return np.concatenate([_pictures(archive.read(member)) for member in sheets])[:count]


def _sheet(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Images ``(n, side, side, 3)`` in rows of 16, the rest black."""
    side, down = images.shape[1], -(-len(images) // _ACROSS)
    padded = np.zeros((down * _ACROSS, side, side, 3), dtype=np.uint8)
    padded[: len(images)] = images
    return padded.reshape(down, _ACROSS, side, side, 3).swapaxes(1, 2).reshape(down * side, _ACROSS * side, 3)


def _pictures(raw: bytes) -> NDArray[np.uint8]:
    """Images ``(n, side, side, 3)`` of a sheet, black ones at the end included."""
    with Image.open(io.BytesIO(raw), formats=("WEBP",)) as image:
        sheet = np.asarray(image.convert("RGB"))
    side = sheet.shape[1] // _ACROSS
    down = sheet.shape[0] // side
    return sheet.reshape(down, side, _ACROSS, side, 3).swapaxes(1, 2).reshape(-1, side, side, 3)


def _encoded(sheet: NDArray[np.uint8], method: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(sheet).save(buffer, "WEBP", lossless=True, quality=100, method=method)
    return buffer.getvalue()
