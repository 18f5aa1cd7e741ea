"""``pyro-smat monitor state.json stream.jsonl``: are the tasks that arrive still like those of validation?"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from pyro_smat.cli.options import Wait


def monitor(
    state: Annotated[Path, typer.Argument(help="The monitor's state, RUN/monitor.json; updated in place.")],
    stream: Annotated[Path | None, typer.Argument(help="JSON lines with kl and entropy; default: stdin.")] = None,
    every: Annotated[bool, typer.Option(help="Print after every task, not only at the end or at an alarm.")] = False,
    wait: Wait = False,
) -> None:
    """Follow a stream of routed tasks and tell when they are no longer like those of validation; exit code 1 then.

    The alarm is false with probability at most the state's alpha, over its whole life. `adapt --scores` writes such
    lines.
    """
    from pyro_smat.files import locked

    if not state.is_file():
        raise ValueError(f"{state}: no such file; expected the monitor.json of a run")
    with locked(state.parent, wait=wait, name=f".{state.name}.lock"):
        _follow(state, stream, every)


def _follow(state: Path, stream: Path | None, every: bool) -> None:
    import json

    from pyro_smat.inference.deployment.monitoring import RoutingMonitor

    following = RoutingMonitor.load(state)
    reading = following.reading
    text = sys.stdin if stream is None else _lines(stream)
    for number, line in enumerate(text, start=1):
        if not line.strip():
            continue
        try:
            scores = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"line {number} of the stream is not JSON ({error}); expected kl and entropy") from error
        if not isinstance(scores, dict) or not all(type(value) in (int, float) for value in scores.values()):
            raise ValueError(
                f'line {number} of the stream is {line.strip()!r:.80}; expected {{"kl": number, "entropy": number}}'
            )
        raised, reading = reading.alarm, following.update(scores)
        if every or reading.alarm > raised:
            typer.echo(str(reading))
    following.save(state)
    if not every:
        typer.echo(str(reading))
    if reading.alarm:
        raise typer.Exit(1)


def _lines(stream: Path) -> list[str]:
    try:
        return stream.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ValueError(f"{stream}: cannot be read ({error.strerror}); expected JSON lines") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{stream}: is not UTF-8 ({error}); expected JSON lines") from error
