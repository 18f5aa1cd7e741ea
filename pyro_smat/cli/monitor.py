"""``pyro-smat monitor state.json stream.jsonl``: are the tasks that arrive still like those of validation?"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer


def monitor(
    state: Annotated[Path, typer.Argument(help="The monitor's state, RUN/monitor.json; updated in place.")],
    stream: Annotated[Path | None, typer.Argument(help="JSON lines with kl and entropy; default: stdin.")] = None,
    every: Annotated[bool, typer.Option(help="Print after every task, not only at the end or at an alarm.")] = False,
) -> None:
    """Follow a stream of routed tasks and tell when they are no longer like those of validation; exit code 1 then.

    The alarm is false with probability at most the state's alpha, over its whole life. `adapt --scores` writes such
    lines.
    """
    import json

    from pyro_smat.inference.deployment.monitoring import RoutingMonitor

    following = RoutingMonitor.load(state)
    reading = following.reading
    text = sys.stdin if stream is None else stream.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(text, start=1):
        if not line.strip():
            continue
        try:
            scores = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"line {number} of the stream is not JSON ({error}); expected kl and entropy") from error
        raised, reading = reading.alarm, following.update(scores)
        if every or reading.alarm > raised:
            typer.echo(str(reading))
    following.save(state)
    if not every:
        typer.echo(str(reading))
    if reading.alarm:
        raise typer.Exit(1)
