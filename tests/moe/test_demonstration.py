"""The demonstration's parts: questions from text made here, the upcycled network, and a whole tiny run."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from other_process import run_python

PROGRAM = Path(__file__).parents[2] / "benchmarks" / "moe"
sys.path.insert(0, str(PROGRAM))

from batches import load_questions  # noqa: E402
from network import SEP, Experts, MiniLMMoE, _grouped, balance_loss  # noqa: E402
from questions import package_questions, wordnet_questions  # noqa: E402

from pyro_smat.moe import attach  # noqa: E402

sys.path.remove(str(PROGRAM))


def bert(layers: int = 2) -> torch.nn.Module:
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=120, hidden_size=24, num_hidden_layers=layers, num_attention_heads=12, intermediate_size=32,
        max_position_embeddings=64,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = BertModel(config, add_pooling_layer=False).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape))
    return model


def weights_of(model: torch.nn.Module) -> Mapping[str, np.ndarray]:
    return {k: v.numpy() for k, v in model.state_dict().items() if v.is_floating_point()}


def inputs(count: int = 3, seed: int = 0) -> dict[str, torch.Tensor]:
    """Questions of 14 tokens, the last with two fewer."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(103, 120, (count, 14), generator=generator)
    ids[:, [3, 5, 7, 9, 11]] = SEP
    ids[:, 12:] = 0
    mask = (ids != 0).long()
    return {"input_ids": ids, "attention_mask": mask}


@torch.no_grad()
def test_upcycling_is_exact() -> None:
    """Against transformers' own BERT with the same weights."""
    model = bert()
    network = MiniLMMoE(weights_of(model), layers=2, num_experts=4)
    data = inputs()
    expected = model(**data).last_hidden_state
    found = network.encode(**data)[0]
    keep = data["attention_mask"].bool()
    torch.testing.assert_close(found[keep], expected[keep], rtol=1e-4, atol=1e-5)
    assert network(**data).shape == (3, 4)
    with attach(network).routing(lambda call: call.logits):
        assert torch.equal(network.encode(**data)[0], found)


@torch.no_grad()
def test_experts_and_grouped_products_by_hand() -> None:
    torch.manual_seed(0)
    experts = Experts(16, 32, 4)
    for parameter in experts.parameters():
        parameter.normal_(0, 0.3)
    tokens, index, weights = torch.randn(9, 16), torch.randint(3, (9, 2)), torch.rand(9, 2)  # expert 3 gets none
    expected = torch.zeros(9, 16)
    for t in range(9):
        for j in range(2):
            e = int(index[t, j])
            hidden = torch.nn.functional.gelu(experts.up[e] @ tokens[t] + experts.up_bias[e])
            expected[t] += weights[t, j] * (experts.down[e] @ hidden + experts.down_bias[e])
    torch.testing.assert_close(experts(tokens, index, weights), expected, rtol=1e-4, atol=1e-4)
    offsets = torch.tensor([4, 4, 7, 9], dtype=torch.int32)
    found = _grouped(tokens.bfloat16(), experts.up, offsets).float()
    rows = [0] * 4 + [2] * 3 + [3] * 2
    by_hand = torch.stack([experts.up[e].bfloat16().float() @ tokens[t].bfloat16().float() for t, e in enumerate(rows)])
    torch.testing.assert_close(found, by_hand, rtol=0.02, atol=0.02)


@torch.no_grad()
def test_answers_by_hand() -> None:
    network = MiniLMMoE(weights_of(bert()), layers=1, num_experts=2)
    data = inputs()
    hidden = network.encode(**data)[0]
    found = network.answer(hidden, data["input_ids"])
    for i in range(3):
        gloss = hidden[i, :4].mean(0)
        for j, (a, b) in enumerate(((4, 6), (6, 8), (8, 10), (10, 12))):
            cosine = torch.cosine_similarity(hidden[i, a:b].mean(0), gloss, dim=0)
            torch.testing.assert_close(found[i, j], network.score(hidden[i, b - 1])[0] + 10 * cosine)


def test_balance_loss_is_one_when_balanced_and_ignores_padding() -> None:
    logits = torch.eye(4).repeat(6, 1) * 30
    mask = torch.ones(2, 12)
    assert float(balance_loss([logits], mask, 1)) == pytest.approx(1.0, abs=1e-4)
    skewed = logits.clone()
    skewed[12:] = torch.tensor([30.0, 0, 0, 0])
    assert float(balance_loss([skewed], mask, 1)) > 1.2
    mask[1] = 0
    assert float(balance_loss([skewed], mask, 1)) == pytest.approx(1.0, abs=1e-4)


def wordnet_lines() -> str:
    lines = ["  1 This is a licence line"]
    for i in range(12):
        parent = "00000001" if i < 6 else f"0000010{i}"
        lines.append(
            f'{i:08d} 05 n 02 beast_{i} 0 other_{i} 0 001 @ {parent} n 0000 | a thing of kind {i}; "an example"'
        )
    lines.append("00000099 05 n 01 giraffe 0 001 @ 00000001 n 0000 | a giraffe that names itself")
    return "\n".join(lines)


def test_questions_are_made_of_synsets() -> None:
    questions = wordnet_questions(wordnet_lines(), 12, seed=0)
    assert len({q.text for q in questions}) == 12
    for q in questions:
        number = int(q.text.rsplit(" ", 1)[1])
        assert q.options[q.answer] == f"beast {number}"
        assert len(set(q.options)) == 4
        assert "example" not in q.text
        if number < 6:  # enough of the same hypernym
            assert all(o == "giraffe" or int(o.split()[1]) < 6 for o in q.options)
    with pytest.raises(ValueError, match="13 questions were asked for; the text gives 12"):
        wordnet_questions(wordnet_lines(), 13, seed=0)
    twice = wordnet_lines() + "\n" + wordnet_lines().replace("beast", "brute")
    assert (
        len({q.text for q in wordnet_questions(twice, 12, seed=0)}) == 12
    )  # so validation and test are not in training
    packages = "\n\n".join(f"Package: tool{i}\nSection: games\nDescription: does a useful job {i}" for i in range(6))
    found = package_questions(packages + "\n\nPackage: libx\nSection: games\nDescription: of no use here", 6)
    assert all(q.options[q.answer] == "tool" + q.text[-1] and "libx" not in q.options for q in found)


def write_data(folder: Path) -> None:
    np.savez(folder / "minilm.npz", **weights_of(bert()))
    arrays = {}
    for seed, name in enumerate(("train", "validation", "test", "verbs", "adjectives", "packages")):
        ids = inputs(24, seed)["input_ids"][:, :12].numpy()
        arrays[f"{name}.tokens"] = ids.flatten().astype(np.uint16)
        arrays[f"{name}.ends"] = np.arange(12, 12 * 25, 12, dtype=np.int32)
        arrays[f"{name}.answers"] = (ids[:, 4] % 4).astype(np.int8)
    np.savez(folder / "questions.npz", **arrays)


def test_batches_hold_every_question_once(tmp_path: Path) -> None:
    write_data(tmp_path)
    questions = load_questions(tmp_path / "questions.npz", "test", torch.device("cpu"))
    ordered = torch.cat([b["input_ids"] for b in questions.batches(7)])
    assert torch.equal(ordered, questions.input_ids)
    assert torch.equal(ordered, inputs(24, 2)["input_ids"][:, :12])
    shuffled = torch.cat([b["labels"] for b in questions.batches(8, torch.Generator().manual_seed(0))])
    assert torch.equal(shuffled.sort().values, questions.labels.sort().values)


def test_a_whole_run_writes_its_arms_goes_on_and_makes_tables(tmp_path: Path) -> None:
    write_data(tmp_path)
    arms = "deterministic,full .1,temperature .1,ensemble,laplace"
    options = (
        f"--data {tmp_path} --out {tmp_path}/run --state {tmp_path}/state --layers 2 --experts 4 --epochs 1 "
        "--head-epochs 1 --batch 12 --trajectories 2 --samples 2 --members 2"
    ).split()
    command = [PROGRAM / "run.py", *options, "--arms"]
    run_python(*command, "deterministic,full .1", variables={"PATH": ""})
    before = (tmp_path / "run" / "0-full-.1.json").read_text()
    assert "epoch" not in run_python(*command, arms, variables={"PATH": ""})  # the network of the first call was kept
    assert (tmp_path / "run" / "0-full-.1.json").read_text() == before
    report = json.loads(before)
    test = report["ways"]["trajectories"]["test"]["raw"]
    with np.load(tmp_path / "run" / "0-full-.1.npz") as arrays:
        p, labels = arrays["trajectories.probabilities"].astype(float), arrays["labels"]
    assert test["accuracy"] == pytest.approx((p.argmax(1) == labels).mean(), abs=0.05)
    assert test["nll"] == pytest.approx(-np.log(p[np.arange(24), labels]).mean(), abs=1e-2)
    assert report["stability"]["self"] == 1  # common random numbers
    assert 0 <= report["ways"]["mean"]["shift"]["verbs"]["logit_variance.last"]["auroc"] <= 1
    tables = run_python(PROGRAM / "table.py", tmp_path / "run", "--csv", tmp_path / "arms.csv", variables={"PATH": ""})
    written = list(csv.DictReader((tmp_path / "arms.csv").read_text().splitlines()))
    assert sorted({row["arm"] for row in written}) == sorted(arms.split(","))
    (row,) = (r for r in written if (r["arm"], r["way"]) == ("full .1", "trajectories"))
    (plain,) = (r for r in written if r["arm"] == "deterministic")
    expected = float(row["tempered_nll"]) - float(plain["tempered_nll"])
    assert float(row["difference"]) == pytest.approx(expected, abs=2e-3)  # kept probabilities are in float16
    assert float(row["difference_low"]) <= float(row["difference"]) <= float(row["difference_high"])
    assert tables.count("\n| full .1 |") >= 5
