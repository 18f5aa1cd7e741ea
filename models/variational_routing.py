r"""VariationalRouting: a mixture-of-experts transformer whose routers' logits (or temperatures) are latent, per token.

.. math::
    l_{it}^{(r)} \sim N\big(W_r u_{it}^{(r)}, \sigma^2 I\big), \qquad
    y_i \mid l \sim p\big(y_i \mid \mathrm{network}(x_i; l_i)\big)

u is what router r sees of token t of sequence i, and so depends on the latents of the layers below. One site a layer,
``route.0``, ``route.1``, ...; sequences are the episodes, so CVaR_ELBO can take its tail over prompts. The network runs
once, inside the model; a guide that is a GuideMessenger (``guides/moe_routing.py``) needs no second run. VMoER,
arXiv 2603.09453; the priors are in ``pyro_smat.moe.priors``. Edit this file or write your own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor, nn

from pyro_smat.moe.calls import Chosen, Router, RouterCall
from pyro_smat.moe.priors import GaussianPrior, RouterPrior
from pyro_smat.moe.selection import PlackettLuce, sample_without_replacement, straight_through_factor
from pyro_smat.moe.surgery import Attachment
from pyro_smat.routing.local_module import LocalModule

Selection = Literal["top_k", "sample"]
Gradient = Literal["pathwise", "straight_through", "score"]
Batch = Mapping[str, Tensor]


class Likelihood(Protocol):
    """Observes the answers of a batch, inside the episode plate (dim -2).

    Attributes:
        targets: entries of the batch that the network is not given.
    """

    targets: tuple[str, ...]

    def __call__(self, output: Any, batch: Batch) -> None: ...


@dataclass(frozen=True)
class Classification:
    """One label ``(B,)`` a sequence; the network returns logits ``(B, classes)``, or an output that has them."""

    label: str = "labels"

    @property
    def targets(self) -> tuple[str, ...]:
        return (self.label,)

    def __call__(self, output: Any, batch: Batch) -> None:
        logits = _logits(output).unsqueeze(1)
        pyro.sample("y", dist.Categorical(logits=logits.float()), obs=batch[self.label].unsqueeze(1))


@dataclass(frozen=True)
class CausalLM:
    """The next token, where ``labels (B, L)`` is not -100: mark prompt and padding so, or they are learned too."""

    label: str = "labels"

    @property
    def targets(self) -> tuple[str, ...]:
        return (self.label,)

    def __call__(self, output: Any, batch: Batch) -> None:
        logits, labels = _logits(output)[:, :-1].float(), batch[self.label][:, 1:]
        answered = labels != -100
        with pyro.plate("y.tokens", labels.shape[1], dim=-1), poutine.mask(mask=answered):
            pyro.sample("y", dist.Categorical(logits=logits), obs=labels.masked_fill(~answered, 0))


@dataclass(frozen=True)
class MultipleChoice:
    """One of a few tokens (the letters of the options) after the last real token; ``labels (B,)`` says which.

    Attributes:
        options: token ids of the options.
        label: entry of the batch.
    """

    options: tuple[int, ...]
    label: str = "labels"

    @property
    def targets(self) -> tuple[str, ...]:
        return (self.label,)

    def logits(self, output: Any, batch: Batch) -> Tensor:
        """Logits of the options ``(B, options)``."""
        logits = _logits(output)
        mask = batch.get("attention_mask")
        if mask is None:
            last = logits[:, -1]
        else:  # the last real token, whichever side is padded
            position = (mask.long() * torch.arange(1, mask.shape[1] + 1, device=mask.device)).argmax(1)
            last = logits[torch.arange(len(logits), device=logits.device), position]
        return last[:, list(self.options)].float()

    def __call__(self, output: Any, batch: Batch) -> None:
        logits = self.logits(output, batch).unsqueeze(1)
        pyro.sample("y", dist.Categorical(logits=logits), obs=batch[self.label].unsqueeze(1))


@dataclass(frozen=True)
class TokenStates:
    """What a guide may condition on at a site: found in ``infer["routing"]`` of its message.

    Attributes:
        router: which.
        hidden: ``(B, L, H)``.
        logits: ``(B, L, E)``.
    """

    router: Router
    hidden: Tensor
    logits: Tensor


def attention_mask(router: Router, batch: Batch) -> Tensor | None:
    """The batch's ``attention_mask (B, L)``, if it has one: which tokens are real, to every router."""
    return batch.get("attention_mask")


class VariationalRouting(LocalModule):
    """The joint density of latent routing and answers, of one batch of sequences.

    Args:
        attachment: of the network (:func:`pyro_smat.moe.attach`). Its parameters are not the model's: SVI leaves them
            alone.
        likelihood: observes the answers.
        prior: of the latents.
        beta: weight of every latent's log densities, so of the KL.
        kl_reduction: "sum" over tokens and layers: with beta = 1 the objective is the negative ELBO. "token_mean": the
            KL of a layer is averaged over the real tokens of each sequence, as in the paper. That is a *tempered*
            objective: it weighs the KL by beta / (number of tokens), and is no bound.
        selection: "top_k" of the latent logits, by the router's own rule, or "sample": without replacement with
            probabilities softmax(logits); only for routers that say how they weigh experts.
        gradient: of the sampled choice: "pathwise" (of the weights only), "straight_through" (biased), or "score": the
            experts are a site ``route.i.experts`` and the ELBO uses its score function.
        mask: ``(router, batch) -> (B, L) bool or None``, the real tokens that a router sees; default:
            :func:`attention_mask`. A function of a module, where the model is to be pickled.

    Raises:
        ValueError: for options out of range, or when a router's number of experts to choose is not known.
    """

    def __init__(
        self,
        attachment: Attachment,
        likelihood: Likelihood,
        prior: RouterPrior | None = None,
        *,
        beta: float = 1.0,
        kl_reduction: Literal["sum", "token_mean"] = "sum",
        selection: Selection = "top_k",
        gradient: Gradient = "pathwise",
        mask: Callable[[Router, Batch], Tensor | None] | None = None,
    ) -> None:
        super().__init__()
        if not beta > 0:
            raise ValueError(f"beta is {beta}; expected > 0")
        if kl_reduction not in ("sum", "token_mean") or selection not in ("top_k", "sample"):
            raise ValueError(
                f"kl_reduction is {kl_reduction!r} and selection {selection!r}; expected sum or token_mean, "
                "top_k or sample"
            )
        if gradient not in ("pathwise", "straight_through", "score"):
            raise ValueError(f"gradient is {gradient!r}; expected pathwise, straight_through or score")
        if selection == "sample" and (unknown := [r.name for r in attachment.routers if r.top_k is None]):
            raise ValueError(f"selection 'sample' needs to know how many experts a token gets; not known of {unknown}")
        _refuse_checkpointing(attachment.model)
        self.attachment = attachment
        self.likelihood = likelihood
        self.prior: RouterPrior = GaussianPrior() if prior is None else prior
        self.beta, self.kl_reduction = beta, kl_reduction
        self.selection, self.gradient = selection, gradient
        self.token_mask = mask or attention_mask

    @property
    def network(self) -> nn.Module:
        """The attached network."""
        return self.attachment.model

    @property
    def objective(self) -> str:
        """What an ELBO object minimises with this model."""
        if self.kl_reduction == "token_mean":
            return f"tempered loss: NLL + {self.beta:g} x KL per token (not an ELBO)"
        return "negative ELBO" if self.beta == 1 else f"tempered loss: NLL + {self.beta:g} x KL (not an ELBO)"

    def forward(self, batch: Batch) -> Any:
        """Run the network with sampled routing and observe the answers; returns the network's output.

        Args:
            batch: what the network takes by name, ``attention_mask (B, L)`` (1 for real tokens) and the targets.

        Raises:
            ValueError: when the batch lacks a target or holds nothing for the network, or the network checkpoints.
            RuntimeError: when an attached router did not ask for its logits.
        """
        self._check_batch(batch)
        _refuse_checkpointing(self.network)
        inputs = {name: value for name, value in batch.items() if name not in self.likelihood.targets}
        size = len(next(iter(batch.values())))
        called: set[int] = set()
        with pyro.plate("episodes", size, dim=-2):
            with self.attachment.routing(lambda call: self._route(call, batch, size, called)):
                output = self.network(**inputs)
            silent = [router.name for router in self.attachment.routers if router.index not in called]
            if silent:
                raise RuntimeError(f"routers {silent} ran without asking for their logits; attach(..., leave=...) them")
            self.likelihood(output, batch)
        return output

    def _check_batch(self, batch: Batch) -> None:
        missing = [name for name in self.likelihood.targets if name not in batch]
        if missing or set(batch) <= set(self.likelihood.targets):
            raise ValueError(
                f"the batch has {sorted(batch)}; expected inputs of the network and {list(self.likelihood.targets)} "
                f"for {type(self.likelihood).__name__}, the answers to learn from (for CausalLM the input_ids, -100 "
                "where nothing is to be learned). To predict, run the network itself under attachment.routing"
            )

    def _route(self, call: RouterCall, batch: Batch, size: int, called: set[int]) -> Tensor | Chosen:
        router = call.router
        if router.index in called:
            raise RuntimeError(
                f"router {router.name!r} ran twice in one pass; each of its runs would need its own site"
            )
        called.add(router.index)
        logits = call.logits.reshape(size, -1, router.num_experts)
        hidden = call.hidden.reshape(size, logits.shape[1], -1)
        name = f"route.{router.index}"
        mask = self._mask(router, batch, logits)
        with pyro.plate(f"{name}.tokens", logits.shape[1], dim=-1), poutine.mask(mask=mask):
            with poutine.scale(scale=self._scale(mask)):
                states = TokenStates(router, hidden, logits)
                latent = pyro.sample(name, self.prior(logits, router), infer={"routing": states})
            if self.prior.latent == "log_temperature":
                latent = logits / latent.exp().unsqueeze(-1)
            if self.selection == "top_k":
                return latent.reshape(call.logits.shape)
            return self._choose(name, latent, router, call)

    def _choose(self, name: str, latent: Tensor, router: Router, call: RouterCall) -> Chosen:
        k = router.top_k
        assert k is not None
        factor = None
        if self.gradient == "score":
            fn = PlackettLuce(latent.detach(), k)
            index = pyro.sample(f"{name}.experts", fn, infer={"experts": PlackettLuce(latent, k)})
        else:
            index = sample_without_replacement(latent, k)
            if self.gradient == "straight_through":
                factor = straight_through_factor(latent, index)
        shape = call.logits.shape[:-1]
        return Chosen(
            latent.reshape(call.logits.shape),
            index.reshape(*shape, k),
            None if factor is None else factor.reshape(*shape, k),
        )

    def _mask(self, router: Router, batch: Batch, logits: Tensor) -> Tensor:
        mask = self.token_mask(router, batch)
        if mask is None:
            return torch.ones(logits.shape[:2], dtype=torch.bool, device=logits.device)
        if mask.shape != logits.shape[:2]:
            raise ValueError(
                f"router {router.name!r} sees {tuple(logits.shape[:2])} tokens, the mask has {tuple(mask.shape)}; "
                "pass mask=, a function of router and batch"
            )
        return mask.bool()

    def _scale(self, mask: Tensor) -> Tensor | float:
        if self.kl_reduction == "sum":
            return self.beta
        return self.beta / mask.sum(1, keepdim=True).clamp(min=1)


def _refuse_checkpointing(network: nn.Module) -> None:
    if any(getattr(module, "gradient_checkpointing", False) is True for module in network.modules()):
        raise ValueError(
            "gradient checkpointing runs layers again outside the model, without its latents; "
            "call gradient_checkpointing_disable() on the network"
        )


def _logits(output: Any) -> Tensor:
    return output if isinstance(output, Tensor) else output.logits
