"""``pyro-smat route RUN tasks/ --output out/``: as many tasks as there are, in parts, by any number of processes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

import typer

from pyro_smat.cli.options import (
    AllowOutside,
    Device,
    OwnGuide,
    OwnModel,
    OwnNetwork,
    OwnParts,
    Progress,
    RunFolder,
    Seed,
    Wait,
    open_router,
    own_parts,
)


def route(
    run: RunFolder,
    tasks: Annotated[
        Path,
        typer.Argument(
            help="A folder of tasks (TASK/support/CLASS/*, TASK/query/...), an index (CSV or Parquet with task, role, "
            "path, label), a tar shard, or a folder of them."
        ),
    ],
    output: Annotated[Path, typer.Option(help="Where parts and summary go; a run that was begun is continued.")],
    size: Annotated[int, typer.Option(min=1, help="Tasks a part; a tar shard is one part.")] = 1000,
    at_once: Annotated[int, typer.Option(min=1, help="Tasks that are routed together.")] = 32,
    probabilities: Annotated[bool, typer.Option(help="Keep the class probabilities of all queries.")] = False,
    root: Annotated[
        Path | None, typer.Option(help="Folder that paths of an index start from; default: its own.")
    ] = None,
    allow_outside: AllowOutside = False,
    memory: Annotated[int, typer.Option(min=0, help="MiB that images of an index may take with features.")] = 1024,
    loss: Annotated[
        Literal["error", "brier"], typer.Option(help="What is certified, where labels are known.")
    ] = "error",
    rho: Annotated[float, typer.Option(help="Tail fraction of the CVaR.")] = 0.1,
    delta: Annotated[float, typer.Option(help="Probability with which any of the bounds may fail.")] = 0.05,
    model: OwnModel = None,
    guide: OwnGuide = None,
    network: OwnNetwork = None,
    own: OwnParts = None,
    seed: Seed = None,
    device: Device = "auto",
    progress: Progress = True,
    wait: Wait = False,
) -> None:
    """Route many tasks into Parquet parts; kill it anywhere and start it again. Under torchrun processes share them."""
    import hashlib

    from pyro_smat.files import plain, write_json
    from pyro_smat.inference.runs.folder import router_folder
    from pyro_smat.inference.runs.routing import route_tasks, summarize_parts

    rank, processes = _place()
    _choose_gpu(device)
    classifier = open_router(run, device, own_parts(model, guide, network, own))
    complete = route_tasks(
        classifier,
        tasks,
        output,
        size=size,
        at_once=at_once,
        seed=seed or 0,
        probabilities=probabilities,
        root=root,
        allow_outside=allow_outside,
        memory=memory * 2**20,
        router=hashlib.sha256((router_folder(run) / "router.json").read_bytes()).hexdigest(),
        rank=rank,
        processes=processes,
        progress=progress,
        wait=wait,
    )
    if not complete:
        typer.echo(f"process {rank} of {processes} has done its parts; the last one to end prints the summary")
        return
    summary = summarize_parts(output, loss=loss, rho=rho, delta=delta)
    write_json(output / "summary.json", plain(summary.to_dict()))
    typer.echo(str(summary))
    typer.echo(f"parts: {output / 'parts'}")


def _place() -> tuple[int, int]:
    """This process's number and how many there are, as torchrun says it; 0 of 1 without it."""
    found = []
    for name, default in (("RANK", "0"), ("WORLD_SIZE", "1")):
        text = os.environ.get(name, default)
        if not text.isdecimal():
            raise ValueError(f"the environment has {name}={text!r}; expected a number, as torchrun sets it")
        found.append(int(text))
    return found[0], found[1]


def _choose_gpu(device: str) -> None:
    """The GPU of this process of its host, where there are several."""
    local = os.environ.get("LOCAL_RANK", "")
    if device in ("auto", "cuda") and local.isdecimal():
        import torch

        if torch.cuda.is_available():
            torch.cuda.set_device(int(local) % torch.cuda.device_count())
