"""Class folders and a config over the suite's MobileNetV2 sources, for `pyro-smat train` and benchmarks/distributed.py.

    python benchmarks/evidence/training_config.py --data data/suite --out runs/suite
    python benchmarks/distributed.py --processes 1 --processes 2 --episodes 256 --config runs/suite/config.toml

Writes the "router" and "validation" classes of the trained domains as PNG files, OUT/router and OUT/validation, and
OUT/config.toml: six sources, four experts, a logistic-normal guide, so that every step runs and trains networks.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from options import Options
from suite import load_split

from pyro_smat.episodes.readers.folders import write_folder

CONFIG = """\
seed = {seed}

[data]
kind = "folder"
path = "{out}"
size = 64
channels = 3
train = "router"
validation = "validation"

[episodes]
way = 5
shot = 5
query = 7
skip_small_classes = true

[sources]
network = "mobilenet_v2"

[sources.files]
{files}

[experts]
count = 4
sparsity = 0.9

[guide]
kind = "logistic_normal"

[objective]
kl_weight = 0.02
rho = 0.5
tail_weight = 0.5

[training]
delta_learning_rate = 3e-5
"""


def main(
    data: Annotated[Path, typer.Option()] = Path("data/suite"),
    sources: Annotated[Path | None, typer.Option(help="Default: DATA/sources.")] = None,
    out: Annotated[Path, typer.Option()] = Path("runs/suite"),
    seed: Annotated[int, typer.Option()] = 0,
    each: Annotated[int, typer.Option(help="The most images of a class.")] = 60,
) -> None:
    """Write the folders and the config."""
    options = Options(data=data, sources=sources or data / "sources")
    for split in ("router", "validation"):
        write_folder(load_split(data, split, options.trained), out / split, each=each)
    files = "\n".join(f'{name} = "{path.resolve()}"' for name, path in options.files(seed).items())
    (out / "config.toml").write_text(CONFIG.format(seed=seed, out=out.resolve(), files=files))
    typer.echo(f"{out / 'config.toml'}: {len(options.names)} sources")


if __name__ == "__main__":
    typer.run(main)
