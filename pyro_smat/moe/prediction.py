r"""Predictions of an attached network under a way of routing, and what of their uncertainty is routing.

:func:`predict` is one pass; :func:`trajectories` S passes, each with routing drawn throughout the network, whose
probabilities are averaged:

.. math:: H\Big[\tfrac1S \sum_s p_s\Big] = \underbrace{\tfrac1S \sum_s H[p_s]}_{\text{aleatoric}}
          + \underbrace{I(y; \text{routing})}_{\text{mutual information}}
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_smat.moe.calls import Memory, RoutingFunction
from pyro_smat.moe.surgery import Attachment


@dataclass(frozen=True)
class Prediction:
    """A predictive distribution taken apart; entropies in nats.

    Attributes:
        probabilities: ``(..., C)``, the mixture.
        total: ``(...)`` entropy of the mixture.
        aleatoric: ``(...)`` mean entropy of the components.
        components: ``(S, ..., C)``.
    """

    probabilities: Tensor
    total: Tensor
    aleatoric: Tensor
    components: Tensor

    @property
    def mutual_information(self) -> Tensor:
        """Of the answer and the routing ``(...)``; never negative but for rounding."""
        return self.total - self.aleatoric


def entropy(probabilities: Tensor) -> Tensor:
    """Entropy in nats ``(...)`` of ``(..., C)``; 0 log 0 is 0."""
    return -torch.xlogy(probabilities, probabilities).sum(-1)


def mixture(components: Tensor) -> Prediction:
    """The prediction of equally likely components ``(S, ..., C)``."""
    mean = components.mean(0)
    return Prediction(mean, entropy(mean), entropy(components).mean(0), components)


@torch.no_grad()
def predict(attachment: Attachment, function: RoutingFunction | None, logits: Callable[[], Tensor]) -> Prediction:
    """One pass.

    Args:
        attachment: of the network.
        function: how it is routed, see ``modes``; None for its own way.
        logits: runs the network and returns the logits of the answers ``(..., C)``.

    Example:
        >>> predict(attachment, mean_routing(guide), lambda: model(**batch).logits[:, -1, options])
        ...                                                                         # doctest: +SKIP
    """
    with attachment.routing(function):
        return mixture(logits().float().softmax(-1).unsqueeze(0))


@torch.no_grad()
def trajectories(
    attachment: Attachment, functions: Sequence[RoutingFunction | None], logits: Callable[[], Tensor]
) -> Prediction:
    """One pass for each of S routing functions, averaged as probabilities.

    Args:
        attachment: of the network.
        functions: S of them, e.g. ``[sampled_routing(guide, seed) for seed in range(20)]``, or the members of an
            ensemble of routers.
        logits: as in :func:`predict`.

    Raises:
        ValueError: when there are none, or one twice: each draws from its seed anew, so it would only count double.
    """
    _check_functions(functions)
    components = []
    for function in functions:
        with attachment.routing(function):
            components.append(logits().float().softmax(-1))
    return mixture(torch.stack(components))


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
    eos_token_id: int | None = None,
) -> Tensor:
    """Continue prompts with a key-value cache: the same tokens for the same seeds, also with functions used before.

    With several functions (trajectories) each has a cache of its own, and the next token is chosen from the average of
    their probabilities.

    Args:
        attachment: of a causal language model of transformers.
        input_ids: ``(B, L)`` prompts, padded on the left.
        functions: how to route; one for "mean" and "expected".
        max_new_tokens: at most so many.
        attention_mask: ``(B, L)``, 1 for real tokens.
        temperature: 0 takes the most probable token; otherwise tokens are drawn.
        seed: of drawn tokens; routing functions have their own.
        eos_token_id: ends a sequence, which is filled with it.

    Returns:
        Prompts and continuations ``(B, L + new)``.
    """
    _check_functions(functions)
    model = attachment.model
    cache = "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"
    generator = torch.Generator(device=input_ids.device).manual_seed(seed)
    mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
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
        if eos_token_id is not None:
            token = token.masked_fill(done.unsqueeze(1), eos_token_id)
            done = done | (token.squeeze(1) == eos_token_id)
        ids, fresh = torch.cat([ids, token], 1), token
        mask = torch.cat([mask, torch.ones_like(token)], 1)
        if bool(done.all()):
            break
    return ids


def _check_functions(functions: Sequence[RoutingFunction | None]) -> None:
    if not functions:
        raise ValueError("no routing functions; expected at least one (None for the network's own routing)")
    first: dict[int, int] = {}
    for i, function in enumerate(functions):
        if (j := first.setdefault(id(function), i)) != i and function is not None:
            raise ValueError(
                f"function {i} is function {j} again, and would draw the same; expected functions with seeds of their "
                "own, e.g. [sampled_routing(guide, seed) for seed in range(20)]"
            )
