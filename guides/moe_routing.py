r"""TokenRoutingGuide: amortised posteriors of the latents of ``models/variational_routing.py``.

.. math:: q(l \mid u) = N\big(\mu_{\mathrm{prior}} + \Delta\mu(u),\ L(u) L(u)^\top\big)

with a small head a layer: trunk ``Linear(H, trunk)`` and ReLU, then a residual of the mean and a covariance. Heads
start at the prior, those of temperatures at a tenth of its deviation. A GuideMessenger: it answers while the model
runs, so an ELBO costs one pass of the network and the hidden states of a layer come from the sampled layers below.
Everything is computed in float32.
"""

from __future__ import annotations

from abc import abstractmethod
from contextlib import nullcontext
from typing import Any, Literal

import pyro.distributions as dist
import torch
from pyro.poutine import Trace
from pyro.poutine.guide import GuideMessenger
from torch import Tensor, nn
from torch.nn import functional as F

import pyro_smat.moe.divergences  # noqa: F401  registers KLs
from pyro_smat.models.variational_routing import TokenStates, VariationalRouting
from pyro_smat.moe.calls import Router, RouterCall
from pyro_smat.routing.local_module import LocalModule

Family = Literal["mean_field", "low_rank", "full", "point", "temperature", "point_temperature"]
INITIAL_STD = 1e-3


class RouterHead(nn.Module):
    """One layer's head: hidden ``(..., H)`` and the prior -> posterior of the latent.

    Args:
        router: whose H and E.
        trunk: width of the shared hidden layer.
    """

    latent = "logits"

    def __init__(self, router: Router, trunk: int) -> None:
        super().__init__()
        if router.hidden_size is None:
            raise ValueError(f"router {router.name!r} does not show its hidden size; pass hidden_sizes={{name: H}}")
        self.trunk = nn.Linear(router.hidden_size, trunk, bias=False)

    def features(self, hidden: Tensor) -> Tensor:
        """``(..., trunk)``, in the dtype of the head.

        Raises:
            TypeError: when the head was cast to half precision.
        """
        if self.trunk.weight.dtype not in (torch.float32, torch.float64):
            raise TypeError(f"a routing head is in {self.trunk.weight.dtype}; keep the guide in float32")
        return F.relu(self.trunk(hidden.to(self.trunk.weight.dtype)))

    @abstractmethod
    def posterior(self, hidden: Tensor, prior: Any) -> dist.TorchDistribution:
        """q, of the batch shape of the prior."""

    def forward(self, hidden: Tensor, prior: Any) -> dist.TorchDistribution:
        device = hidden.device.type
        with torch.autocast(device, enabled=False) if device != "meta" else nullcontext():
            return self.posterior(hidden, prior)


def _small(inputs: int, outputs: int) -> nn.Linear:
    linear = nn.Linear(inputs, outputs)
    nn.init.normal_(linear.weight, std=INITIAL_STD)
    nn.init.zeros_(linear.bias)
    return linear


class PointHead(RouterHead):
    """A residual of the mean alone: with the Gaussian prior, a deterministic fine-tune with weight decay on it."""

    def __init__(self, router: Router, trunk: int) -> None:
        super().__init__(router, trunk)
        self.mean = _small(trunk, router.num_experts)

    def posterior(self, hidden: Tensor, prior: Any) -> dist.TorchDistribution:
        return dist.Delta(prior.mean + self.mean(self.features(hidden)), event_dim=1)


class MeanFieldHead(PointHead):
    """Independent normals."""

    def __init__(self, router: Router, trunk: int) -> None:
        super().__init__(router, trunk)
        self.log_scale = _small(trunk, router.num_experts)

    def posterior(self, hidden: Tensor, prior: Any) -> dist.TorchDistribution:
        features = self.features(hidden)
        scale = prior.stddev * self.log_scale(features).exp()
        return dist.Normal(prior.mean + self.mean(features), scale, validate_args=False).to_event(1)


class LowRankHead(MeanFieldHead):
    """Diagonal plus rank r: for many experts (E >= 128), where E x E matrices for every token do not fit."""

    def __init__(self, router: Router, trunk: int, rank: int) -> None:
        super().__init__(router, trunk)
        self.rank = rank
        self.factor = _small(trunk, router.num_experts * rank)

    def posterior(self, hidden: Tensor, prior: Any) -> dist.TorchDistribution:
        features = self.features(hidden)
        scale = prior.stddev
        factor = self.factor(features).unflatten(-1, (-1, self.rank)) * scale.unsqueeze(-1)
        variance = (scale * self.log_scale(features).exp()).square()
        loc = prior.mean + self.mean(features)
        return dist.LowRankMultivariateNormal(loc, factor, variance, validate_args=False)


class FullHead(PointHead):
    """A full covariance by its Cholesky factor, diagonal by exp."""

    def __init__(self, router: Router, trunk: int) -> None:
        super().__init__(router, trunk)
        self.num_experts = router.num_experts
        self.cholesky = _small(trunk, router.num_experts * (router.num_experts + 1) // 2)

    def posterior(self, hidden: Tensor, prior: Any) -> dist.TorchDistribution:
        features = self.features(hidden)
        entries = self.cholesky(features)
        rows, columns = torch.tril_indices(self.num_experts, self.num_experts, device=entries.device)
        lower = entries.new_zeros(*entries.shape[:-1], self.num_experts, self.num_experts)
        lower[..., rows, columns] = torch.where(rows == columns, entries.exp(), entries)
        lower = lower * prior.stddev.unsqueeze(-1)
        return dist.MultivariateNormal(prior.mean + self.mean(features), scale_tril=lower, validate_args=False)


class TemperatureHead(RouterHead):
    """log T of every token, a normal; starts at T = 1 with a tenth of the prior's deviation."""

    latent = "log_temperature"

    def __init__(self, router: Router, trunk: int) -> None:
        super().__init__(router, trunk)
        self.mean, self.log_scale = _small(trunk, 1), _small(trunk, 1)

    def posterior(self, hidden: Tensor, prior: Any) -> dist.TorchDistribution:
        features = self.features(hidden)
        scale = 0.1 * prior.stddev * self.log_scale(features).squeeze(-1).exp()
        return dist.Normal(self.mean(features).squeeze(-1), scale, validate_args=False)


class PointTemperatureHead(RouterHead):
    """T = softplus(network) + 1e-6, a point: the paper's."""

    latent = "log_temperature"

    def __init__(self, router: Router, trunk: int) -> None:
        super().__init__(router, trunk)
        self.raw = _small(trunk, 1)
        nn.init.constant_(self.raw.bias, 0.5413)  # softplus of it is 1

    def posterior(self, hidden: Tensor, prior: Any) -> dist.TorchDistribution:
        raw = self.raw(self.features(hidden)).squeeze(-1)
        return dist.Delta((F.softplus(raw) + 1e-6).log())


class RoutingHeads(LocalModule):
    """The heads of all layers, in order.

    Args:
        routers: of the attachment.
        family: which posterior.
        trunk: width; cost and size of the heads grow with it.
        rank: of "low_rank".
    """

    def __init__(self, routers: tuple[Router, ...], family: Family = "mean_field", trunk: int = 64, rank: int = 4):
        super().__init__()
        if family not in _HEADS:
            raise ValueError(f"family is {family!r}; expected one of {sorted(_HEADS)}")
        self.family = family
        options = {"rank": rank} if family == "low_rank" else {}
        self.layers = nn.ModuleList(_HEADS[family](router, trunk, **options) for router in routers)

    def forward(self, index: int, hidden: Tensor, prior: Any) -> dist.TorchDistribution:
        """The posterior of layer ``index`` given ``hidden (..., H)``."""
        return self.layers[index](hidden, prior)


class TokenRoutingGuide(GuideMessenger, nn.Module):
    """A guide for VariationalRouting; pass it with the model to Pyro's ELBOs, to SVI and to CVaR_ELBO.

    Not with vectorize_particles, which the network's flattened tokens do not survive: repeat the batch instead.

    Args:
        model: the VariationalRouting; heads are made for its routers.
        family: "mean_field", "low_rank", "full" covariance, "point"; "temperature" and "point_temperature" for priors
            of temperatures.
        trunk: width of the heads.
        rank: of "low_rank".

    Raises:
        ValueError: when family and prior speak of different latents.

    Example:
        >>> model = VariationalRouting(attach(network), CausalLM(), beta=0.01, kl_reduction="token_mean")
        ...                                                                         # doctest: +SKIP
        >>> guide = TokenRoutingGuide(model, "full")                                # doctest: +SKIP
        >>> TraceMeanField_ELBO()(model, guide)(batch).backward()                   # doctest: +SKIP
    """

    def __init__(self, model: VariationalRouting, family: Family = "mean_field", *, trunk: int = 64, rank: int = 4):
        nn.Module.__init__(self)
        GuideMessenger.__init__(self, model)
        self.heads = RoutingHeads(model.attachment.routers, family, trunk, rank)
        wanted = _HEADS[family].latent
        if wanted != model.prior.latent:
            raise ValueError(
                f"family {family!r} is a posterior of {wanted}; the prior {type(model.prior).__name__} is one of "
                f"{model.prior.latent}"
            )

    @property
    def routing_model(self) -> VariationalRouting:
        """The model, whose parameters are not the guide's."""
        model: VariationalRouting = vars(self)["_model"][0]
        return model

    def __call__(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Run the model with latents from the posterior; site name -> value."""
        return GuideMessenger.__call__(self, *args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("trace", "args_kwargs", "_infer")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        nn.Module.__setstate__(self, state)
        self.trace = Trace()

    def _pyro_sample(self, msg: Any) -> None:
        self._infer = msg["infer"]
        super()._pyro_sample(msg)
        self._infer = None

    def get_posterior(self, name: str, prior: Any) -> Any:
        """q of a site of the model (see GuideMessenger)."""
        if "experts" in self._infer:
            return self._infer["experts"]
        states: TokenStates = self._infer["routing"]
        return self.heads(states.router.index, states.hidden, prior)

    def distribution(self, call: RouterCall) -> Any:
        """q at a call of a router, of batch shape ``(...)``: for prediction, without Pyro."""
        prior = self.routing_model.prior(call.logits, call.router)
        return self.heads(call.router.index, call.hidden, prior)


_HEADS: dict[str, Any] = {
    "mean_field": MeanFieldHead,
    "low_rank": LowRankHead,
    "full": FullHead,
    "point": PointHead,
    "temperature": TemperatureHead,
    "point_temperature": PointTemperatureHead,
}
