"""Throughput of training on 1 and on N processes, and whether the losses are the same.

    python benchmarks/distributed.py --processes 1 --processes 2  # GPUs if there are as many, else gloo on the CPU
    python benchmarks/distributed.py --processes 1 --processes 4 --steps 30 --episodes 32 --config config.toml

Trains the router of the built-in glyphs (or of ``--config``), without validation, from the same seed under torchrun for
every number of processes, each with one thread. Images per second are the median over steps after the first five;
"largest difference" is that of the loss of any step to the first row's.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import pandas as pd
import torch
import typer

WARM_UP = 5


def main(
    processes: Annotated[
        list[int] | None, typer.Option(help="Numbers of processes; the first one is compared with.")
    ] = None,
    steps: int = 25,
    episodes: Annotated[int, typer.Option(help="Episodes a step, of all processes together.")] = 16,
    config: Annotated[Path | None, typer.Option(help="TOML config; default: the built-in glyphs.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Override the config, key=value.")] = None,
    json_: Annotated[Path | None, typer.Option("--json", help="Write the table there.")] = None,
) -> None:
    """Train under torchrun for every number of processes, and print the table."""
    counts = processes or [1, 2]
    device = "cuda" if torch.cuda.device_count() >= max(counts) else "cpu"
    settings = [f"training.steps={steps}", f"training.episodes={episodes}", "training.validate_every=0"]
    settings += ["training.numbered=true", "training.validation_episodes=2", *(set_ or [])]
    rows: list[dict[str, float | int | str]] = []
    first: pd.DataFrame | None = None
    with tempfile.TemporaryDirectory() as folder:
        for count in counts:
            history = _train(count, device, Path(folder) / str(count), config, settings)
            first = history if first is None else first
            difference = (history["loss"] - first["loss"]).abs().max()
            speed = history["images_per_second"][WARM_UP:].median()
            rows.append({"processes": count, "images_per_second": speed, "largest_difference": difference})
    for row in rows:
        row["speed-up"] = float(row["images_per_second"]) / float(rows[0]["images_per_second"])
    where = torch.cuda.get_device_name() if device == "cuda" else f"{os.cpu_count()} CPU cores, one thread a process"
    typer.echo(f"{where}, {episodes} episodes a step\n{pd.DataFrame(rows).to_string(index=False)}")
    if json_ is not None:
        json_.write_text(json.dumps({"device": where, "rows": rows}, indent=2))


def _train(count: int, device: str, folder: Path, config: Path | None, settings: list[str]) -> pd.DataFrame:
    if config is None:
        config = folder.with_suffix(".toml")
        config.write_text("")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
    command += ["-m", "pyro_smat", "train", str(config), "--output", str(folder), "--device", device, "--no-progress"]
    for setting in settings:
        command += ["--set", setting]
    done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{count} processes failed:\n{done.stderr}")
    return pd.read_csv(folder / "history.csv")


if __name__ == "__main__":
    typer.run(main)
