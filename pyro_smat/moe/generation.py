"""Continuations of prompts by an attached causal language model of transformers, under one way of routing or several.

Prompts -> a pass a token and routing function, each with its key-value cache -> mean probabilities -> the next token.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pyro_smat.moe.calls import Memory, RoutingFunction
from pyro_smat.moe.prediction import check_functions
from pyro_smat.moe.surgery import Attachment


@torch.no_grad()
def generate(
    attachment: Attachment,
    input_ids: Tensor,
    functions: Sequence[RoutingFunction | None],
    *,
    max_new_tokens: int,
    attention_mask: Tensor | None = None,
    temperature: float = 0.0,
    seed: int = 0,
    eos_token_id: int | Sequence[int] | None = None,
) -> Tensor:
    """Continue prompts with a key-value cache: the same tokens for the same seeds, also with functions used before.

    With several functions (trajectories) each has a cache of its own, and the next token is chosen from the average of
    their probabilities.

    Args:
        attachment: of a causal language model of transformers, in evaluation mode.
        input_ids: ``(B, L)`` prompts, padded on the left.
        functions: how to route; one for "mean" and "expected".
        max_new_tokens: at most so many.
        attention_mask: ``(B, L)``, 1 for real tokens.
        temperature: 0 takes the most probable token; otherwise tokens are drawn.
        seed: of drawn tokens; routing functions have their own.
        eos_token_id: ends a sequence; one of several does. The rest of the sequence is filled with the first.

    Returns:
        Prompts and continuations ``(B, L + new)``.

    Raises:
        ValueError: for prompts that are not ``(B, L)`` or padded on the right, a number out of range, no functions or
            one twice.
        TypeError: when ``eos_token_id`` holds something else than integers.
    """
    check_functions(functions)
    ends = _ends(eos_token_id)
    mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
    _check_prompts(input_ids, mask)
    if not isinstance(max_new_tokens, int) or max_new_tokens < 0 or not 0 <= temperature < float("inf"):
        raise ValueError(
            f"max_new_tokens is {max_new_tokens} and temperature {temperature}; expected an integer and a finite "
            "number, neither below 0 (a temperature of 0 takes the most probable token)"
        )
    model = attachment.model
    cache = "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"
    generator = torch.Generator(device=input_ids.device).manual_seed(seed)
    caches: list[Any] = [None] * len(functions)
    memories: list[Memory] = [{} for _ in functions]  # of one run each, from the first token to the last
    done = torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
    ids, fresh = input_ids, input_ids
    for _ in range(max_new_tokens):
        probabilities = torch.zeros((), device=input_ids.device)
        for i, function in enumerate(functions):
            with attachment.routing(function, memories[i]):
                output = model(input_ids=fresh, attention_mask=mask, use_cache=True, **{cache: caches[i]})
            caches[i] = getattr(output, cache)
            probabilities = probabilities + output.logits[:, -1].float().softmax(-1) / len(functions)
        if temperature > 0:
            weights = (probabilities.log() / temperature).softmax(-1)
            token = torch.multinomial(weights, 1, generator=generator)
        else:
            token = probabilities.argmax(-1, keepdim=True)
        if ends:
            token = token.masked_fill(done.unsqueeze(1), ends[0])
            done = done | torch.isin(token.squeeze(1), torch.tensor(ends, device=token.device))
        ids, fresh = torch.cat([ids, token], 1), token
        mask = torch.cat([mask, torch.ones_like(token)], 1)
        if bool(done.all()):
            break
    return ids


def _ends(eos_token_id: int | Sequence[int] | None) -> list[int]:
    if eos_token_id is None:
        return []
    ends = [eos_token_id] if isinstance(eos_token_id, int) else list(eos_token_id)
    if not ends or not all(isinstance(end, int) for end in ends):
        raise TypeError(f"eos_token_id is {eos_token_id!r}; expected an integer, a list of at least one, or None")
    return ends


def _check_prompts(input_ids: Tensor, mask: Tensor) -> None:
    if input_ids.dim() != 2 or input_ids.is_floating_point() or mask.shape != input_ids.shape:
        raise ValueError(
            f"input_ids are {tuple(input_ids.shape)} {input_ids.dtype} and attention_mask {tuple(mask.shape)}; "
            "expected token ids (B, L) and a mask of the same shape"
        )
    if input_ids.shape[1] == 0 or not bool(mask[:, -1].all()):
        raise ValueError(
            "a prompt is empty or ends in padding (attention_mask is 0 in its last column), after which nothing "
            "sensible follows; expected prompts padded on the left: tokenizer.padding_side = 'left'"
        )
