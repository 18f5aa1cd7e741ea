"""Generation: against full passes and transformers' own, padding and ends, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from families import tiny, tokens
from spread import Spread
from torch import Tensor

from pyro_smat.moe import attach, expected_routing, generate, mean_routing, sampled_routing


@torch.no_grad()
def test_generation_with_caches_is_generation_without() -> None:
    """Greedy tokens against full passes without a cache, routed by the mean and by expected routing; seeds repeat."""
    model = tiny("mixtral", output_router_logits=False)
    attachment = attach(model)
    prompt = tokens(2, 5)["input_ids"]
    posterior = Spread(0.7, 0.3)
    for function in (None, mean_routing(posterior), expected_routing(posterior, 8)):
        ids = prompt
        for _ in range(4):
            with attachment.routing(function):
                ids = torch.cat([ids, model(input_ids=ids).logits[:, -1].argmax(-1, keepdim=True)], 1)
        assert torch.equal(generate(attachment, prompt, [function], max_new_tokens=4), ids)
    assert torch.equal(
        generate(attachment, prompt, [None], max_new_tokens=4),
        model.generate(prompt, max_new_tokens=4, do_sample=False),
    )

    def several(seed: int) -> Tensor:
        functions = [sampled_routing(posterior, 10 * seed + s) for s in range(3)]
        return generate(attachment, prompt, functions, max_new_tokens=6, temperature=1.0, seed=seed)

    assert torch.equal(several(0), several(0))
    assert not torch.equal(several(0), several(1))


@torch.no_grad()
def test_generation_skips_padding_and_ends() -> None:
    model = tiny("mixtral", output_router_logits=False)
    attachment = attach(model)
    prompt = tokens(1, 5)["input_ids"]
    padded = torch.cat([torch.zeros(1, 3, dtype=torch.long), prompt], 1)
    mask = (torch.arange(8) >= 3).long().unsqueeze(0)
    plain = generate(attachment, prompt, [None], max_new_tokens=3)
    reference = model.generate(padded, attention_mask=mask, max_new_tokens=3, do_sample=False)
    found = generate(attachment, padded, [None], attention_mask=mask, max_new_tokens=3)
    assert torch.equal(found[:, : reference.shape[1]], reference)
    end, unused = int(plain[0, 5]), 63 if int(plain[0, 5]) != 63 else 62
    for ends in (end, [end], [unused, end], (end, unused)):
        assert generate(attachment, prompt, [None], max_new_tokens=5, eos_token_id=ends).shape[1] == 6


@torch.no_grad()
def test_a_sequence_that_ended_is_filled_with_the_first_end() -> None:
    """Of three prompts the one that ends first, by either of two ends; the others go on as if alone."""
    model = tiny("mixtral", output_router_logits=False)
    attachment = attach(model)
    prompts = tokens(3, 5)["input_ids"]
    plain = generate(attachment, prompts, [None], max_new_tokens=4)
    end = int(plain[1, 5])
    unused = next(i for i in range(64) if i not in plain[:, 5:])
    found = generate(attachment, prompts, [None], max_new_tokens=4, eos_token_id=[unused, end])
    for row, own in zip(found[:, 5:].tolist(), plain[:, 5:].tolist(), strict=True):
        length = own.index(end) + 1 if end in own else 4
        assert row == own[:length] + [unused] * (4 - length)
    assert found[1, 6:].tolist() == [unused] * 3


def test_generation_says_what_it_cannot_do() -> None:
    model = tiny("mixtral", output_router_logits=False)
    attachment = attach(model)
    prompts = tokens(2, 5)["input_ids"]
    right = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"temperature": -1.0}, "temperature -1.0; expected"),
        ({"temperature": float("nan")}, "temperature nan; expected"),
        ({"max_new_tokens": -1}, "max_new_tokens is -1"),
        ({"max_new_tokens": 2.5}, "max_new_tokens is 2.5"),
        ({"eos_token_id": []}, r"eos_token_id is \[\]; expected an integer"),
        ({"eos_token_id": [1, "</s>"]}, r"eos_token_id is \[1, '</s>'\]"),
        ({"eos_token_id": "</s>"}, "eos_token_id is '</s>'"),
        ({"attention_mask": right}, "padding_side = 'left'"),
        ({"attention_mask": right[:, :4]}, r"attention_mask \(2, 4\)"),
        ({"input_ids": prompts[0]}, r"input_ids are \(5,\)"),
        ({"input_ids": prompts[:, :0]}, "a prompt is empty"),
        ({"input_ids": prompts.float()}, "torch.float32"),
        ({"functions": []}, "no routing functions"),
    ]
    for options, message in wrong:
        with pytest.raises((ValueError, TypeError), match=message):
            generate(attachment, **({"input_ids": prompts, "functions": [None], "max_new_tokens": 2} | options))
