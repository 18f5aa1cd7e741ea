"""A small copy of the suite for another machine: sheets of lossless WebP in a zip file that unpack to the same bytes.

`unpack` checks the digest of each domain.
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
from numpy.typing import NDArray
from pictures import SIZE
from PIL import Image
from suite import TRAINED, UNSEEN, about, load_arrays

_ACROSS = 16
_ON_A_SHEET = _ACROSS * 16


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
                    sheet = _sheet(images[start : start + _ON_A_SHEET].numpy())
                    _add(archive, f"{domain}/{start:06d}.webp", _encoded(sheet))
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
                sheets = [archive.read(m) for m in members if m.startswith(f"{domain}/") and m.endswith(".webp")]
                images = np.concatenate([_pictures(raw) for raw in sheets])[: len(labels)]
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


def _sheet(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Images ``(n, 3, 64, 64)`` in rows of 16, the rest black."""
    down = -(-len(images) // _ACROSS)
    padded = np.zeros((down * _ACROSS, SIZE, SIZE, 3), dtype=np.uint8)
    padded[: len(images)] = images.transpose(0, 2, 3, 1)
    return padded.reshape(down, _ACROSS, SIZE, SIZE, 3).swapaxes(1, 2).reshape(down * SIZE, _ACROSS * SIZE, 3)


def _pictures(raw: bytes) -> NDArray[np.uint8]:
    """Images ``(n, 64, 64, 3)`` of a sheet, black ones at the end included."""
    with Image.open(io.BytesIO(raw), formats=("WEBP",)) as image:
        sheet = np.asarray(image.convert("RGB"))
    down, across = sheet.shape[0] // SIZE, sheet.shape[1] // SIZE
    return sheet.reshape(down, SIZE, across, SIZE, 3).swapaxes(1, 2).reshape(-1, SIZE, SIZE, 3)


def _encoded(sheet: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(sheet).save(buffer, "WEBP", lossless=True, quality=75, method=4)
    return buffer.getvalue()
