"""Abstention: risk against coverage and calibration of every uncertainty score of the router with an expert."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from bench import BLOCKS, Bench
from cells import Cells
from markdown import Found, grid
from options import Options
from outcomes import EXPERT, Standard, misrouting

from pyro_smat.inference.decision.scores.standard import score_names
from pyro_smat.inference.evaluation import EvaluationSettings
from pyro_smat.metrics import aurc
from pyro_smat.metrics.calibration import bin_of
from pyro_smat.metrics.selective import auroc
from trials.variations import variation_keys

TITLE = "Abstention"
BINS, COVERAGE = 5, 0.8
STATED = {"least_confidence": "misrouted", "predictive_entropy": "loss"}  # scores in the unit of what they foretell


def keys(options: Options) -> list[tuple[str, ...]]:
    return variation_keys(options, [EXPERT])


def run(bench: Bench, cells: Cells, folder: Path) -> None:
    standard = Standard(bench, folder)
    settings = EvaluationSettings(rules=(), baselines=(), each_source=False)
    for name, block, condition in cells.missing(keys(bench.options)):
        found = standard.drawn(block, condition).evaluate(*standard.pairs[EXPERT], settings)
        losses = {"routed": found.loss("posterior_predictive"), "fallback": found.loss("fallback")}
        wrong, _ = misrouting(found)
        errors = {"routed": 1 - found.accuracy("posterior_predictive")}
        values = {"loss": losses, "error": errors, "misrouted": {"routed": wrong}, "score": dict(found.scores)}
        cells.write((name, block, condition), values)


def show(found: Found) -> list[str]:
    lines = []
    for block in BLOCKS:
        cells = [cell for cell in found.cells if cell.key[1] == block]
        if not cells:
            continue
        seeds = sorted({cell.seed for cell in cells})

        def over_seeds(score: str, cells: list = cells, seeds: list = seeds) -> dict[str, list]:
            """Conditions pooled, seed by seed."""
            measured: dict[str, list] = {"aurc": [], "risk": [], "whole": [], "wrong": [], "bins": [], "stated": []}
            for seed in seeds:
                own = [cell.values for cell in cells if cell.seed == seed]
                u = np.concatenate([v["score"][score] for v in own])
                loss, error, wrong = (
                    np.concatenate([v[kind]["routed"] for v in own]) for kind in ("loss", "error", "misrouted")
                )
                kept = np.argsort(u, kind="stable")[: round(COVERAGE * len(u))]
                measured["aurc"].append(aurc(u, loss))
                measured["risk"].append(100 * error[kept].mean())
                measured["whole"].append(100 * error.mean())
                measured["wrong"].append(auroc(u, wrong == 1))
                told = {"misrouted": wrong, "loss": loss}[STATED.get(score, "loss")]
                which = bin_of(u, BINS, "mass")
                at = [(which == b) if (which == b).any() else np.ones(len(u), bool) for b in range(BINS)]
                measured["bins"].append([told[b].mean() for b in at])
                measured["stated"].append([u[b].mean() for b in at])
            return measured

        columns = ["AURC, nats", f"error at {COVERAGE:.0%} coverage %", "error of all %", "AUROC of misrouting"]
        measures = dict(zip(columns, ("aurc", "risk", "whole", "wrong"), strict=True))
        known = {name: over_seeds(name) for name in score_names() if name in cells[0].values["score"]}

        def text(score: str, column: str, known: dict = known, measures: dict = measures) -> str:
            digits = 1 if "%" in column else 3
            return f"{np.mean(known[score][measures[column]]):.{digits}f}"

        lines += grid(f"{block}, all conditions: score", known, columns, text)

        def fifth(score: str, column: str, known: dict = known) -> str:
            at = int(column[0]) - 1
            told = f"{np.mean(known[score]['bins'], axis=0)[at]:.2f}"
            return f"{np.mean(known[score]['stated'], axis=0)[at]:.2f}: {told}" if score in STATED else told

        corner = f"{block}: loss by fifths of the score (least_confidence: stated and real share misrouted)"
        lines += grid(corner, known, [f"{b + 1} of {BINS}" for b in range(BINS)], fifth)
    return lines
