"""Figures of one arm: accuracy, proper scores, calibration with its floor, the tail, new domains, stability, cost."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from arms import Arm, Settings, Way
from batches import Questions
from pretrain import answers

from pyro_smat.metrics import auroc, brier_score, expected_calibration_error, negative_log_likelihood
from pyro_smat.moe import trajectories
from pyro_smat.moe.baselines import fit_output_temperature
from pyro_smat.moe.cost import milliseconds
from pyro_smat.moe.measures import average_precision, calibration_floor, mean_embedding_norm, routing_stability
from pyro_smat.moe.signals import (
    at_last_token,
    gate_entropy,
    logit_variance,
    over_tokens,
    temperature,
    watching,
)
from pyro_smat.moe.surgery import Attachment

BINS = 15
GAMMAS = (0.001, 0.002, 0.005, 0.007, 0.01, 0.02, 0.05, 0.1)


def evaluate(
    attachment: Attachment, arm: Arm, sets: dict[str, Questions], settings: Settings
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Everything that is reported of an arm, and its probabilities on the test questions for paired intervals.

    Args:
        attachment: of the network.
        arm: fitted.
        sets: "validation", "test" and the other domains.
        settings: of the run.
    """
    report: dict[str, Any] = {"notes": dict(arm.notes), "ways": {}}
    kept: dict[str, np.ndarray] = {}
    static = {name: read_signals(attachment, arm, questions, settings) for name, questions in sets.items()}
    for name, way in arm.ways.items():
        predicted = {key: run_way(attachment, way, questions, settings) for key, questions in sets.items()}
        labels = {key: questions.labels.cpu().numpy() for key, questions in sets.items()}
        log_p = torch.from_numpy(predicted["validation"]["probabilities"]).clamp(min=1e-12).log()
        output_temperature = fit_output_temperature(log_p, torch.from_numpy(labels["validation"]))
        found: dict[str, Any] = {"output_temperature": output_temperature}
        for key in (k for k in sets if k != "validation"):
            p = predicted[key]["probabilities"]
            found[key] = {
                "raw": scores(p, labels[key]),
                "tempered": scores(tempered(p, output_temperature), labels[key]),
            }
        found["shift"] = {
            key: detection(
                {**signals_of(predicted["test"]), **static["test"]}, {**signals_of(predicted[key]), **static[key]}
            )
            for key in sets
            if key not in ("validation", "test")
        }
        report["ways"][name] = found
        kept[f"{name}.probabilities"] = predicted["test"]["probabilities"].astype(np.float16)
    report["stability"] = stability(attachment, arm, sets["test"])
    report["milliseconds"] = {name: timing(attachment, way, sets["test"], settings) for name, way in arm.ways.items()}
    if arm.guide is not None:
        report["head_parameters"] = sum(p.numel() for p in arm.guide.parameters())
    return report, kept


def run_way(attachment: Attachment, way: Way, questions: Questions, settings: Settings) -> dict[str, np.ndarray]:
    """Probabilities (n, 4), total entropy and mutual information (n,)."""
    parts: list[tuple[torch.Tensor, ...]] = []
    for number, data in enumerate(questions.batches(2 * settings.batch)):
        found = trajectories(attachment, way(number), lambda data=data: answers(attachment.model, data))
        parts.append((found.probabilities, found.total, found.mutual_information))
    names = ("probabilities", "total", "mutual_information")
    return {
        name: torch.cat(part).cpu().double().numpy() for name, part in zip(names, zip(*parts, strict=True), strict=True)
    }


def read_signals(attachment: Attachment, arm: Arm, questions: Questions, settings: Settings) -> dict[str, np.ndarray]:
    """Signals of the posterior at the last token and over all, and the length, which each should beat; (n,) each."""
    signals: dict[str, Any] = {"gate_entropy": gate_entropy}
    latent = None if arm.guide is None else type(arm.guide.heads.layers[0]).latent
    if latent == "log_temperature":
        signals["temperature"] = temperature
    elif arm.posterior is not None:
        signals["logit_variance"] = logit_variance
    parts: dict[str, list[torch.Tensor]] = {}
    with torch.no_grad():
        for data in questions.batches(2 * settings.batch):
            with watching(attachment, arm.posterior, signals) as found:
                answers(attachment.model, data)
            for name, layers in found.items():
                for where, read in (("last", at_last_token), ("mean", over_tokens)):
                    parts.setdefault(f"{name}.{where}", []).append(read(layers, data["attention_mask"]))
    parts["tokens"] = [questions.lengths]
    return {name: torch.cat(values).cpu().double().numpy() for name, values in parts.items()}


def signals_of(predicted: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Signals of the answer; higher is less certain."""
    return {"answer_entropy": predicted["total"], "mutual_information": predicted["mutual_information"]}


def detection(known: dict[str, np.ndarray], shifted: dict[str, np.ndarray]) -> dict[str, dict[str, float]]:
    """AUROC and AUPRC of shifted against known questions by each signal, larger meaning shifted."""
    result = {}
    for name in known:
        values = np.concatenate([known[name], shifted[name]])
        labels = np.concatenate([np.zeros(len(known[name])), np.ones(len(shifted[name]))])
        result[name] = {"auroc": float(auroc(values, labels)), "auprc": average_precision(values, labels)}
    return result


def tempered(probabilities: np.ndarray, value: float) -> np.ndarray:
    """softmax(log p / T)."""
    logits = np.log(np.clip(probabilities, 1e-12, None)) / value
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def scores(p: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Scores of predictions (n, 4)."""
    p = p / p.sum(1, keepdims=True)
    floor = calibration_floor(p, bins=BINS)
    own = -np.log(np.clip(p[np.arange(len(labels)), labels], 1e-12, None))
    return {
        "accuracy": float((p.argmax(1) == labels).mean()),
        "nll": float(negative_log_likelihood(p, labels)),
        "brier": float(brier_score(p, labels)),
        "ece": float(expected_calibration_error(p, labels, bins=BINS)),
        "ece_floor": floor.mean,
        "ece_floor_high": floor.high,
        "worst_tenth_nll": float(np.sort(own)[-max(1, len(own) // 10) :].mean()),
    }


def stability(attachment: Attachment, arm: Arm, questions: Questions) -> dict[str, Any]:
    """Jaccard of the chosen experts on 512 test questions."""
    data = next(questions.batches(512))
    norm = mean_embedding_norm(attachment.model.words, data["input_ids"], data["attention_mask"])
    found = routing_stability(
        attachment,
        arm.stability,
        lambda: answers(attachment.model, data),
        embedding_norm=norm,
        gammas=GAMMAS,
        mask=data["attention_mask"],
    )
    return {"self": found.self_jaccard, "noise": {str(g): j for g, j in found.by_noise.items()}, "embedding_norm": norm}


def timing(attachment: Attachment, way: Way, questions: Questions, settings: Settings) -> float:
    """Milliseconds of a prediction of one batch, median of five."""
    data = next(questions.batches(settings.batch))
    return milliseconds(
        lambda: trajectories(attachment, way(0), lambda: answers(attachment.model, data)), repeats=5, warm_up=1
    )
