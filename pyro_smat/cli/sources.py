"""``pyro-smat sources inspect | compare | align | compress | subspace | add | remove``: work on checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from pyro_smat.cli.options import (
    Device,
    Overrides,
    OwnGuide,
    OwnModel,
    OwnNetwork,
    OwnParts,
    RunFolder,
    commands_of,
    open_router,
    own_parts,
)

app = typer.Typer(help="Checkpoints: do they fit, how far apart are they, align, compress, add and remove them.")
command = commands_of(app)

Config = Annotated[Path | None, typer.Argument(help="TOML config; default: the built-in glyph sources.")]
Output = Annotated[Path, typer.Option(help="Folder for the new .safetensors files.")]


@command
def inspect(
    config: Config = None,
    set_: Overrides = None,
    values: Annotated[bool, typer.Option(help="Read all weights too and look for NaN.")] = False,
) -> None:
    """Files, formats, sizes, and whether every source fits the network; what to do where one does not."""
    from pyro_smat.inference.assembly.router import source_files
    from pyro_smat.sources import check_compatibility

    parsed = _parsed(config, set_)
    network, files = source_files(parsed)
    report = check_compatibility(network, files, parsed.sources.head, values=values)
    typer.echo(str(report))
    if not report.fits:
        raise typer.Exit(1)


@command
def compare(config: Config = None, set_: Overrides = None) -> None:
    """Distances, cosines of task vectors and shares of weights that differ, pair by pair."""
    from pyro_smat.inference.assembly.router import open_library
    from pyro_smat.sources.tables import comparison_table

    library = open_library(_parsed(config, set_))[1]
    typer.echo(library.report)
    typer.echo("")
    typer.echo(comparison_table(library))


@command
def align(
    output: Output,
    config: Config = None,
    set_: Overrides = None,
    method: Annotated[str, typer.Option(help="weights, or activations (which needs --data).")] = "weights",
    data: Annotated[
        Path | None, typer.Option(help="Folder of class folders: for activations, and the barrier.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the order in which units are matched.")] = 0,
) -> None:
    """Permute hidden units and attention heads of every source to match the first; writes aligned checkpoints."""
    from pyro_smat.episodes.readers.folders import read_folder
    from pyro_smat.inference.assembly.router import source_files
    from pyro_smat.sources.alignment import align_files

    parsed = _parsed(config, set_)
    network, files = source_files(parsed)
    pool = None if data is None else read_folder(data, size=parsed.data.size, channels=parsed.data.channels)
    shape = parsed.episodes
    way, shot, query = (n if isinstance(n, int) else n[1] for n in (shape.way, shape.shot, shape.query))
    typer.echo(align_files(network, files, output, method, pool=pool, seed=seed, episodes=(way, shot, query)))


@command
def compress(
    output: Output,
    config: Config = None,
    set_: Overrides = None,
    codec: Annotated[str, typer.Option(help="auto, sparse, truncated, low_rank, int8 or int8_delta.")] = "auto",
    tolerance: Annotated[float, typer.Option(help="Largest relative error of a tensor; 0 is lossless.")] = 0.0,
) -> None:
    """Store every source but the first as differences to the first, or in 8 bits; prints real bytes and errors."""
    from pyro_smat.inference.assembly.router import source_files
    from pyro_smat.sources import compress as compress_source
    from pyro_smat.sources.tables import compression_table

    files = source_files(_parsed(config, set_))[1]
    names = list(files)
    if len(names) < 2:
        raise ValueError(f"got the one source {names}; expected a base and at least one source to compress")
    output.mkdir(parents=True, exist_ok=True)
    taken = {Path(path).resolve() for path in files.values()} & {
        (output / f"{name}.safetensors").resolve() for name in names
    }
    if taken:
        raise ValueError(f"{', '.join(map(str, sorted(taken)))} would be overwritten; choose another --output")
    base = files[names[0]]
    results = {
        name: compress_source(files[name], output / f"{name}.safetensors", base, codec, tolerance) for name in names[1:]
    }
    typer.echo(compression_table(results))


@command
def subspace(
    trained_on: Annotated[
        list[str], typer.Argument(help="What a source was trained on: NAME=FOLDER of class folders.")
    ],
    config: Annotated[Path | None, typer.Option(help="TOML config; default: the built-in glyph sources.")] = None,
    set_: Overrides = None,
    rank: Annotated[int, typer.Option(min=1, help="Directions that are kept.")] = 16,
    split: Annotated[str | None, typer.Option(help="Split of the folders, where they have any.")] = None,
    device: Device = "auto",
) -> None:
    """Fit subspaces of the sources' training features and keep each beside its checkpoint (NAME.safetensors.subspace).

    The baseline "subspace_residual" routes by them.
    """
    from pyro_smat.episodes.readers.folders import read_folder
    from pyro_smat.inference.assembly.router import choose_device, open_library
    from pyro_smat.networks.composition import TaskNetwork
    from pyro_smat.networks.features import SourceFeatures
    from pyro_smat.sources import fit_subspace, save_subspace

    parsed = _parsed(config, set_)
    network, library = open_library(parsed)
    frozen = TaskNetwork(network, library.space)
    for text in trained_on:
        name, separator, folder = text.partition("=")
        if not separator or name not in library.names:
            raise ValueError(f"{text!r} is no NAME=FOLDER with NAME one of the sources {', '.join(library.names)}")
        pool = read_folder(folder, size=parsed.data.size, channels=parsed.data.channels, split=split)
        row = library.names.index(name)
        known = SourceFeatures(frozen, library.basis[row : row + 1].to(choose_device(device)), pool)
        found = fit_subspace(known.of_pool()[:, 0], rank)
        path = save_subspace(library.checkpoints[name], found)
        typer.echo(f"{path}: rank {found.rank} of {found.images} images; usual residual {found.usual:.3f}")


@command
def add(
    run: RunFolder,
    source: Annotated[str, typer.Argument(help="The new source: NAME=FILE.")],
    output: Annotated[Path, typer.Option(help="Folder for the new router.")],
    cost: Annotated[float, typer.Option(help="Its price, where the config prices sources one by one.")] = 1.0,
    base: Annotated[
        Path | None, typer.Option(help="What a compressed source is relative to; default: the router's source 0.")
    ] = None,
    model: OwnModel = None,
    guide: OwnGuide = None,
    network: OwnNetwork = None,
    own: OwnParts = None,
    device: Device = "auto",
) -> None:
    """Add a source to a trained router, without training."""
    from pyro_smat.inference.deployment.changing_sources import add_source

    name, separator, path = source.partition("=")
    if not separator or not name or not path:
        raise ValueError(f"the source is {source!r}; expected NAME=FILE")
    _save(
        add_source(
            open_router(run, device, own_parts(model, guide, network, own)), name, Path(path), cost=cost, base=base
        ),
        output,
    )


@command
def remove(
    run: RunFolder,
    name: Annotated[str, typer.Argument(help="The source to remove.")],
    output: Annotated[Path, typer.Option(help="Folder for the new router.")],
    model: OwnModel = None,
    guide: OwnGuide = None,
    network: OwnNetwork = None,
    own: OwnParts = None,
    device: Device = "auto",
) -> None:
    """Remove a source from a trained router, without training."""
    from pyro_smat.inference.deployment.changing_sources import remove_source

    _save(remove_source(open_router(run, device, own_parts(model, guide, network, own)), name), output)


def _parsed(config: Path | None, overrides: list[str] | None) -> Any:
    from pyro_smat.inference.assembly.config import load_config

    return load_config(config, overrides or [])


def _save(changed: Any, output: Path) -> None:
    typer.echo(f"router over {', '.join(changed.source_names)}: {changed.save(output)}")
    if not (changed.deployment.never_abstains and changed.deployment.never_falls_back):
        typer.echo(
            "its doubts and its fallback were chosen for the old sources; `evaluate --abstain-risk` chooses anew"
        )
