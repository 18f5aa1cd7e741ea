"""The tables of a run as Markdown and as CSV: means over seeds, and paired intervals against one way of predicting.

    python benchmarks/moe/table.py runs/moe
    python benchmarks/moe/table.py runs/moe --base prior,trajectories --csv docs/moe.csv

An interval is of the difference in NLL to the base, by default the deterministic router with an output temperature (the
strong and cheap baseline), both tempered on validation data: 95%, bootstrap over test questions, the difference
averaged over the seeds that both have. Milliseconds are the least over seeds, since other runs may have shared the GPU.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from evaluate import tempered

RESAMPLES = 2000
Found = list[tuple[dict[str, Any], dict[str, Any]]]  # report of an arm, its entry for a way; one a seed
SCORES = ("accuracy", "nll", "brier", "ece", "ece_floor", "worst_tenth_nll")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--base", default="deterministic,mean", help="arm,way that NLL is compared with")
    parser.add_argument("--csv", type=Path, help="also write one row for every seed, arm and way")
    options = parser.parse_args()
    reports = [json.loads(file.read_text()) | {"file": file} for file in sorted(options.folder.glob("*.json"))]
    if not reports:
        parser.error(f"no *.json in {options.folder}")
    rows: dict[tuple[str, str], Found] = defaultdict(list)
    for report in sorted(reports, key=lambda r: r["seed"]):
        for way, found in report["ways"].items():
            rows[report["arm"], way].append((report, found))
    base_arm, _, base_way = options.base.partition(",")
    if (base_arm, base_way) not in rows:
        parser.error(f"no base {options.base!r}; expected one of {[','.join(row) for row in rows]}")
    base = {r["seed"]: own_nll(r, base_way, f) for r, f in rows[base_arm, base_way]}
    print(f"{len({r['seed'] for r in reports})} seeds, {reports[0]['machine']}; differences to {options.base}\n")
    print_scores(rows, base)
    print_signals(rows)
    print_stability(reports)
    if options.csv is not None:
        write_csv(options.csv, rows, base)


def print_scores(rows: dict[tuple[str, str], Found], base: dict[int, np.ndarray]) -> None:
    """Test scores without and with an output temperature."""
    columns = "arm, way, seeds, acc, NLL, Brier, ECE (floor), worst 10%, T, NLL + T, ECE+T (floor), difference+T, ms"
    print("| " + columns.replace(", ", " | ") + " |")
    print("|" + "---|" * 13)
    for (arm, way), found in rows.items():
        raw, warm = ([f["test"][kind] for _, f in found] for kind in ("raw", "tempered"))
        cells = [
            arm, way, str(len(found)), mean(raw, "accuracy"), mean(raw, "nll"), mean(raw, "brier"),
            f"{mean(raw, 'ece')} ({mean(raw, 'ece_floor')})", mean(raw, "worst_tenth_nll"),
            f"{np.mean([f['output_temperature'] for _, f in found]):.2f}", mean(warm, "nll"),
            f"{mean(warm, 'ece')} ({mean(warm, 'ece_floor')})", "{:+.4f} [{:+.4f}, {:+.4f}]".format(*difference(
                [own_nll(r, way, f) - base[r["seed"]] for r, f in found if r["seed"] in base]
            )),
            f"{min(r['milliseconds'][way] for r, _ in found):.0f}",
        ]  # fmt: skip
        print("| " + " | ".join(cells) + " |")


def print_signals(rows: dict[tuple[str, str], Found]) -> None:
    """AUROC of new domains; signals of the routing, which no way changes, once an arm, and no constant ones."""
    domains = list(next(iter(rows.values()))[0][1]["shift"])
    print("\nAUROC (AUPRC) of new domains, higher signal meaning new\n")
    print("| arm | way | signal | " + " | ".join(domains) + " |")
    print("|---|---|---|" + "---|" * len(domains))
    seen: set[tuple[str, str]] = set()
    for (arm, way), found in rows.items():
        for signal in found[0][1]["shift"][domains[0]]:
            of_answer = signal in ("answer_entropy", "mutual_information")
            values = [[f["shift"][d][signal] for _, f in found] for d in domains]
            constant = all(entry["auroc"] == 0.5 for v in values for entry in v)
            if constant or (not of_answer and (arm, signal) in seen):
                continue
            seen.add((arm, signal))
            cells = [f"{mean(v, 'auroc')} ({mean(v, 'auprc')})" for v in values]
            print("| " + " | ".join([arm, way if of_answer else "", signal, *cells]) + " |")


def print_stability(reports: list[dict[str, Any]]) -> None:
    """Jaccard indices, by noise."""
    print("\nJaccard of chosen experts\n")
    gammas = list(reports[0]["stability"]["noise"])
    print("| arm | same input | " + " | ".join(f"γ {g}" for g in gammas) + " |")
    print("|---|---|" + "---|" * len(gammas))
    for arm in dict.fromkeys(r["arm"] for r in reports):
        own = [r["stability"] for r in reports if r["arm"] == arm]
        cells = [f"{np.mean([s['noise'][g] for s in own]):.3f}" for g in gammas]
        print("| " + " | ".join([arm, f"{np.mean([s['self'] for s in own]):.3f}", *cells]) + " |")


def write_csv(file: Path, rows: dict[tuple[str, str], Found], base: dict[int, np.ndarray]) -> None:
    """One row for every seed, arm and way; ``difference`` has the interval of its seed alone."""
    table = []
    for (arm, way), found in rows.items():
        for report, f in found:
            row: dict[str, Any] = {"seed": report["seed"], "arm": arm, "way": way, "T": f["output_temperature"]}
            for kind in ("raw", "tempered"):
                row |= {f"{kind}_{name}": f["test"][kind][name] for name in SCORES}
            if report["seed"] in base:
                values = difference([own_nll(report, way, f) - base[report["seed"]]])
                row |= dict(zip(("difference", "difference_low", "difference_high"), values, strict=True))
            for domain, signals in f["shift"].items():
                row |= {f"auroc_{domain}_{signal}": entry["auroc"] for signal, entry in signals.items()}
            row["jaccard_same"] = report["stability"]["self"]
            row |= {f"jaccard_{gamma}": value for gamma, value in report["stability"]["noise"].items()}
            row["milliseconds"] = report["milliseconds"][way]
            table.append({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()})
    names = list(dict.fromkeys(name for row in table for name in row))
    with file.open("w", newline="") as handle:
        writer = csv.DictWriter(handle, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(table)


def mean(entries: list[dict[str, float]], key: str) -> str:
    """Over seeds, three digits."""
    return f"{np.mean([entry[key] for entry in entries]):.3f}"


def own_nll(report: dict[str, Any], way: str, found: dict[str, Any]) -> np.ndarray:
    """NLL of every test question (n,), with the output temperature."""
    with np.load(report["file"].with_suffix(".npz")) as arrays:
        p, labels = arrays[f"{way}.probabilities"].astype(np.float64), arrays["labels"]
    return -np.log(np.clip(tempered(p, found["output_temperature"])[np.arange(len(labels)), labels], 1e-12, None))


def difference(pairs: list[np.ndarray]) -> tuple[float, float, float]:
    """Mean difference in NLL and its interval, of one array (n,) a seed; not a number where there is none."""
    if not pairs:
        return (np.nan,) * 3
    values = np.mean(pairs, axis=0)
    generator = np.random.default_rng(0)
    rows = generator.integers(len(values), size=(RESAMPLES, len(values)))
    low, high = np.quantile(values[rows].mean(1), (0.025, 0.975))
    return float(values.mean()), float(low), float(high)


if __name__ == "__main__":
    main()
