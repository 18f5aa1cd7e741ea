"""What a checkpoint file is, by its first bytes: people's suffixes say little, and downloads bring other things.

The first look at every path; nothing is parsed here. What is no checkpoint at all is refused by its name: a pointer of
Git LFS, a web page, an archive, half a copy.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Literal

FileKind = Literal["safetensors", "torch zip", "torch", "index", "unknown"]

LARGEST_HEADER = 2**25  # bytes of a safetensors header: room for 250,000 tensors, little memory when parsed
LARGEST_INDEX = 2**26  # bytes of a JSON file
_LOOKED_AT = 1024
_SAFETENSORS_START = 8  # bytes of the length of the header, little-endian

_FOREIGN = (  # first bytes, what it is, what to do
    (b"\x1f\x8b", "a gzip archive", "unpack it first"),
    (b"BZh", "a bzip2 archive", "unpack it first"),
    (b"\xfd7zXZ", "an xz archive", "unpack it first"),
    (b"7z\xbc\xaf", "a 7z archive", "unpack it first"),
    (b"(\xb5/\xfd", "a zstd archive", "unpack it first"),
    (b"\x89HDF", "an HDF5 file (Keras, TensorFlow)", "convert it to PyTorch's names and save it with safetensors"),
    (b"\x93NUMPY", "a NumPy array", "name its tensors and save them with safetensors"),
    (b"GGUF", "a GGUF file (llama.cpp)", "use the floating-point checkpoint that it was made from"),
    (b"%PDF", "a PDF", "download the checkpoint again"),
    (b"\x89PNG", "an image", "give the checkpoint's path"),
    (b"\xff\xd8\xff", "an image", "give the checkpoint's path"),
)


def file_kind(path: Path) -> FileKind:
    """What reads a file, whatever its name ends in.

    Args:
        path: a file that is there.

    Returns:
        "safetensors", "torch zip" (PyTorch since 1.6), "torch" (a pickle, of older versions), "index" (JSON), or
        "unknown", for which a reader's own message serves.

    Raises:
        ValueError: for an empty file, a pointer of Git LFS or git-annex, a web page, an archive, the format of another
            library, a zip without tensors, or a safetensors header of absurd length; says which.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(_LOOKED_AT)
    if not start:
        raise _refused(path, "it is empty, 0 bytes", "a complete file: copy or download it again")
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n")
    if start.startswith(b"version https://git-lfs"):
        raise _refused(path, "it is a Git LFS pointer, not the weights", "the file itself: run git lfs pull")
    if start.startswith((b"/annex/objects/", b"../.git/annex/", b".git/annex/")) or b"/annex/objects/" in start[:200]:
        raise _refused(path, "it is a git-annex pointer, not the weights", "the file itself: run git annex get")
    if text[:400].lower().startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        raise _refused(path, "it is a web page, as a failed download leaves", "weights: download the file again")
    for magic, what, remedy in _FOREIGN:
        if start.startswith(magic):
            raise _refused(path, f"it is {what}", f"a safetensors or PyTorch file: {remedy}")
    if start[257:262] == b"ustar":
        raise _refused(path, "it is a tar archive", "a safetensors or PyTorch file: unpack it first")
    if start.startswith(b"PK"):
        return _zip(path)
    length = int.from_bytes(start[:_SAFETENSORS_START], "little")
    if start[_SAFETENSORS_START : _SAFETENSORS_START + 1] == b"{":
        if length > LARGEST_HEADER:
            raise _refused(
                path,
                f"its header claims {length:,} bytes of the file's {size:,}",
                f"a header of at most {LARGEST_HEADER:,} bytes: a damaged copy? download it again",
            )
        return "safetensors"
    if text.startswith((b"{", b"[")):
        return "index"
    return "torch" if start.startswith(b"\x80") else "unknown"


def _zip(path: Path) -> FileKind:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return "torch zip"  # cut or damaged: PyTorch's reader says what is wrong
    if any(name == "data.pkl" or name.endswith("/data.pkl") for name in names):
        if any(name.endswith("constants.pkl") for name in names) and any("/code/" in name for name in names):
            raise _refused(
                path,
                "it is a TorchScript program, which holds code",
                "weights: save the state dict of the module (module.state_dict()) with safetensors",
            )
        return "torch zip"
    if names and all(name.endswith(".npy") for name in names):
        raise _refused(path, "it is a NumPy archive (.npz)", "a safetensors or PyTorch file: save the arrays so")
    inside = ", ".join(names[:3]) or "nothing"
    raise _refused(path, f"it is a zip archive of {inside}", "a safetensors or PyTorch file: unpack it first")


def _refused(path: Path, found: str, expected: str) -> ValueError:
    what = "safetensors file" if path.suffix.lower() == ".safetensors" else "checkpoint"
    return ValueError(f"{path}: not a readable {what} ({found}); expected {expected}")
