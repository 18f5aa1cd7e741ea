"""Every command with every argument missing, of a wrong type, unreadable, a folder, empty: one line, exit code 2."""

from __future__ import annotations

import inspect
import json
import os
import warnings
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import pytest
import typer
from typer.testing import CliRunner, Result

from pyro_smat.cli.app import app
from pyro_smat.cli.sources import app as sources_app

COMMANDS = {command.name or "": command.callback for command in app.registered_commands}
COMMANDS |= {f"sources {command.name}": command.callback for command in sources_app.registered_commands}


def call(*words: object) -> Result:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return CliRunner().invoke(app, [str(word) for word in words])


def check(result: Result, *also: int) -> None:
    """A refusal as promised; codes of ``also`` are answers that are right too."""
    assert result.exit_code in (2, *also), (result.exit_code, result.output, result.exception)
    assert result.exception is None or isinstance(result.exception, SystemExit), repr(result.exception)
    assert "Traceback" not in result.output
    lines = [line for line in result.stderr.splitlines() if line.strip()]
    ours = [line for line in lines if line.startswith("error: ")]
    if result.exit_code == 2 and not any("Usage:" in line for line in lines):
        assert len(ours) == 1, lines
        assert lines[-1] == ours[0]


def files(tmp_path: Path) -> dict[str, Path]:
    """Paths that are not what any command wants."""
    made = {
        name: tmp_path / f"bad-{name}" for name in ("absent", "empty", "folder", "latin1", "binary", "pipe-of-zeros")
    }
    made["empty"].write_bytes(b"")
    made["folder"].mkdir()
    made["latin1"].write_bytes("caf\u00e9 = 1\n".encode("latin-1"))
    made["binary"].write_bytes(bytes(range(256)) * 4)
    made["pipe-of-zeros"].write_bytes(b"\0" * 4096)
    made["unreadable"] = tmp_path / "bad-unreadable"
    made["unreadable"].write_text("{}")
    made["unreadable"].chmod(0)
    return made


def roles(folder: Path) -> list[tuple[str, Path]]:
    """The first image of every class as a query, the others as its support."""
    paths = [sorted(one.glob("*.png")) for one in sorted(folder.iterdir()) if one.is_dir()]
    return [("query" if path == own[0] else "support", path) for own in paths for path in own]


def good(world: Path, run: Path, output: Path) -> dict[str, list[object]]:
    """For each command arguments that would do."""
    support, image = world / "images" / "test", world / "images" / "test" / "stripe0" / "0.png"
    config, stream = world / "config.toml", world / "stream.jsonl"
    stream.write_text('{"kl": 0.1, "entropy": 0.2}\n')
    lines = [f"t,{role},{path.relative_to(world)},{path.parent.name}" for role, path in roles(support)]
    (world / "tasks.csv").write_text("\n".join(["task,role,path,label", *lines]))
    return {
        "quickstart": [],
        "train": [config],
        "evaluate": [run],
        "certify": [run],
        "adapt": [run, support],
        "predict": [run, support, image],
        "monitor": [run / "monitor.json", stream],
        "cost": [run],
        "diagnose": [run],
        "route": [run, world / "tasks.csv", "--output", output],
        "sources inspect": [config],
        "sources compare": [config],
        "sources align": [config, "--output", output],
        "sources compress": [config, "--output", output],
        "sources subspace": [f"other={support}", "--config", config],
        "sources add": [run, f"new={world / 'other.safetensors'}", "--output", output],
        "sources remove": [run, "other", "--output", output],
    }


def parameters(name: str) -> dict[str, Any]:
    """Option -> annotation of a command."""
    hints = get_type_hints(COMMANDS[name], include_extras=True)
    return {key: hints[key] for key in inspect.signature(COMMANDS[name]).parameters}


def option_of(name: str, annotation: Any) -> str | None:
    """The option's name on the command line; None for an argument."""
    info = next(part for part in get_args(annotation) if hasattr(part, "help"))
    if isinstance(info, typer.models.ArgumentInfo):
        return None
    declared = [text for text in info.param_decls or () if text.startswith("--")]
    return declared[0] if declared else "--" + name.strip("_").replace("_", "-")


def type_of(annotation: Any) -> Any:
    inner = get_args(annotation)[0]
    options = [part for part in get_args(inner) if part is not type(None)]
    return (
        options[0]
        if options and get_origin(inner) is not list and len(options) < 3 and not isinstance(options[0], str)
        else inner
    )


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "quickstart"])
def test_arguments(name: str, world: Path, run: Path, tmp_path: Path) -> None:
    words = good(world, run, tmp_path / "out")[name]
    positional = [word for word in words if not str(word).startswith("--")]
    required = sum(
        option_of(key, annotation) is None and COMMANDS[name].__defaults__ is not None
        and inspect.signature(COMMANDS[name]).parameters[key].default is inspect.Parameter.empty
        for key, annotation in parameters(name).items()
    )  # fmt: skip
    if required:
        check(call(*name.split(), *words[required:]))
    wrong = files(tmp_path)
    for place, word in enumerate(words):
        if word not in positional or (place and words[place - 1] == "--output"):
            continue
        for kind, bad in wrong.items():
            if (kind == "unreadable" and os.geteuid() == 0) or (kind == "empty" and str(word).endswith(".toml")):
                continue  # root reads everything, and an empty config is one of defaults
            result = call(*name.split(), *words[:place], bad, *words[place + 1 :])
            check(result, *([0, 1] if name in HARMLESS or (name, kind) in HARMLESS else []))


# An empty stream follows nothing; `sources inspect` says of each checkpoint what is wrong with it.
HARMLESS: set[Any] = {("monitor", "empty"), ("monitor", "pipe-of-zeros")}


@pytest.mark.parametrize("name", list(COMMANDS))
def test_options_of_a_wrong_type(name: str, world: Path, run: Path, tmp_path: Path) -> None:
    words = good(world, run, tmp_path / "out")[name]
    tried = 0
    for key, annotation in parameters(name).items():
        option, kind = option_of(key, annotation), type_of(annotation)
        if option is None or kind in (bool, Path):
            continue
        wrong = ["x"] if kind in (int, float) else ["no-such-thing:=", ""] if option in WORDS else []
        for value in wrong:
            if option in words:
                continue
            check(call(*name.split(), *words, option, value))
            tried += 1
    assert tried or not any(type_of(a) in (int, float) for a in parameters(name).values())


WORDS = {
    "--device",
    "--set",
    "--model",
    "--guide",
    "--network",
    "--own",
    "--corrupt",
    "--refine",
    "--codec",
    "--method",
}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["evaluate", "RUN", "--abstain-risk", 0], "expected a risk in"),
        (["evaluate", "RUN", "--abstain-risk", 1], "expected a risk in"),
        (["evaluate", "RUN", "--abstain-risk", "nan"], "expected a risk in"),
        (["evaluate", "RUN", "--delta", 0.1], "no --abstain-risk"),
        (["evaluate", "RUN", "--abstain-risk", 0.2, "--delta", 0], "delta"),
        (["evaluate", "RUN", "--episodes", 0], "episodes"),
        (["evaluate", "RUN", "--episodes", -3], "episodes"),
        (["evaluate", "RUN", "--way", 1], "way"),
        (["evaluate", "RUN", "--shot", 0], "shot"),
        (["evaluate", "RUN", "--label-noise", 1.5], "fraction"),
        (["evaluate", "RUN", "--confounding", 2], "probability"),
        (["evaluate", "RUN", "--split", "none"], "none"),
        (["evaluate", "RUN", "--data", "WORLD/images", "--split", "none"], "none"),
        (["certify", "RUN", "--rho", 0], "rho"),
        (["certify", "RUN", "--delta", 1], "delta"),
        (["certify", "RUN", "--episodes", 0], "episodes"),
        (["cost", "RUN", "--images", 0], "images"),
        (["cost", "RUN", "--repeats", 0], "repeats"),
        (["train", "WORLD/config.toml", "--output", "RUN"], "already holds a run"),
        (["train", "WORLD/config.toml", "--set", "nothing"], "key=value"),
    ],
)
def test_numbers_and_combinations(words: list[object], message: str, world: Path, run: Path) -> None:
    result = call(
        *(str(w).replace("RUN", str(run)).replace("WORLD", str(world)) for w in words),
    )
    check(result)
    assert message in result.stderr


def test_a_folder_in_use_is_refused(world: Path, tmp_path: Path) -> None:
    import fcntl

    output = tmp_path / "run"
    output.mkdir()
    with (output / ".lock").open("w+") as file:
        file.write(json.dumps({"pid": 4242, "host": os.uname().nodename}))
        file.flush()
        fcntl.flock(file, fcntl.LOCK_EX)
        result = call("train", world / "config.toml", "--output", output)
    check(result)
    assert "in use by process 4242" in result.stderr
    assert "--wait" in result.stderr


def test_certifying_what_the_router_has_seen_says_so(run: Path, tmp_path: Path) -> None:
    result = call("certify", run, "--split", "train", "--episodes", 8, "--no-progress", "--output", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "took part in making this router" in result.stderr
