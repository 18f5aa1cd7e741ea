"""The tables of a run as Markdown: means over seeds, and paired intervals against the deterministic router.

    python benchmarks/moe/table.py runs/moe

An interval is of the difference in NLL to the deterministic router with an output temperature (the strong and cheap
baseline), both tempered on validation data: 95%, bootstrap over test questions, the difference averaged over seeds.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from evaluate import tempered

RESAMPLES = 2000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    reports = [json.loads(file.read_text()) | {"file": file} for file in sorted(folder.glob("*.json"))]
    if not reports:
        parser.error(f"no *.json in {folder}")
    rows: dict[tuple[str, str], list[tuple[dict[str, Any], dict[str, Any]]]] = defaultdict(list)
    for report in sorted(reports, key=lambda r: r["seed"]):
        for way, found in report["ways"].items():
            rows[report["arm"], way].append((report, found))
    base = {r["seed"]: own_nll(r, "mean", f) for r, f in rows.get(("deterministic", "mean"), [])}
    print(f"{len({r['seed'] for r in reports})} seeds, {reports[0]['machine']}\n")
    columns = "arm, way, acc, NLL, Brier, ECE (floor), worst 10%, T, NLL + T, ECE + T (floor), difference + T, ms"
    print("| " + columns.replace(", ", " | ") + " |")
    print("|" + "---|" * 12)
    for (arm, way), found in rows.items():
        raw, warm = ([f["test"][kind] for _, f in found] for kind in ("raw", "tempered"))
        cells = [
            arm, way, mean(raw, "accuracy"), mean(raw, "nll"), mean(raw, "brier"),
            f"{mean(raw, 'ece')} ({mean(raw, 'ece_floor')})", mean(raw, "worst_tenth_nll"),
            f"{np.mean([f['output_temperature'] for _, f in found]):.2f}", mean(warm, "nll"),
            f"{mean(warm, 'ece')} ({mean(warm, 'ece_floor')})", difference(found, way, base),
            f"{np.mean([r['milliseconds'][way] for r, _ in found]):.0f}",
        ]  # fmt: skip
        print("| " + " | ".join(cells) + " |")
    domains = list(next(iter(rows.values()))[0][1]["shift"])
    print("\nAUROC (AUPRC) of new domains, higher signal meaning new\n")
    print("| arm | way | signal | " + " | ".join(domains) + " |")
    print("|---|---|---|" + "---|" * len(domains))
    for (arm, way), found in rows.items():
        for signal in found[0][1]["shift"][domains[0]]:
            values = [[f["shift"][d][signal] for _, f in found] for d in domains]
            cells = [f"{mean(v, 'auroc')} ({mean(v, 'auprc')})" for v in values]
            print("| " + " | ".join([arm, way, signal, *cells]) + " |")
    print("\nJaccard of chosen experts\n")
    gammas = list(reports[0]["stability"]["noise"])
    print("| arm | same input | " + " | ".join(f"γ {g}" for g in gammas) + " |")
    print("|---|---|" + "---|" * len(gammas))
    for arm in dict.fromkeys(arm for arm, _ in rows):
        own = [r["stability"] for r in reports if r["arm"] == arm]
        cells = [f"{np.mean([s['noise'][g] for s in own]):.3f}" for g in gammas]
        print("| " + " | ".join([arm, f"{np.mean([s['self'] for s in own]):.3f}", *cells]) + " |")


def mean(entries: list[dict[str, float]], key: str) -> str:
    """Over seeds, three digits."""
    return f"{np.mean([entry[key] for entry in entries]):.3f}"


def own_nll(report: dict[str, Any], way: str, found: dict[str, Any]) -> np.ndarray:
    """NLL of every test question (n,), with the output temperature."""
    with np.load(report["file"].with_suffix(".npz")) as arrays:
        p, labels = arrays[f"{way}.probabilities"].astype(np.float64), arrays["labels"]
    return -np.log(np.clip(tempered(p, found["output_temperature"])[np.arange(len(labels)), labels], 1e-12, None))


def difference(found: list[tuple[dict[str, Any], dict[str, Any]]], way: str, base: dict[int, np.ndarray]) -> str:
    """Mean difference in NLL to the baseline and its interval."""
    pairs = [own_nll(report, way, f) - base[report["seed"]] for report, f in found if report["seed"] in base]
    if not pairs:
        return ""
    values = np.mean(pairs, axis=0)
    generator = np.random.default_rng(0)
    rows = generator.integers(len(values), size=(RESAMPLES, len(values)))
    low, high = np.quantile(values[rows].mean(1), (0.025, 0.975))
    return f"{values.mean():+.4f} [{low:+.4f}, {high:+.4f}]"


if __name__ == "__main__":
    main()
