"""Networks of all kinds, each with an input of five images: what TaskNetwork must run as PyTorch does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pyro_smat.networks import build_network


class Call(nn.Module):
    """A layer, called in a way of its own."""

    def __init__(self, part: nn.Module, how: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.part, self.how = part, how

    def forward(self, x: Tensor) -> Any:
        return self.how(self.part, x)


class CacheOnFirstCall(nn.Module):
    """Keeps a table, as rotary embeddings and attention masks do, and what it saw last."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.table: Tensor | None = None
        self.last: Tensor | None = None
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        if self.table is None:
            self.table = x.new_zeros(4) + torch.linspace(0, 1, 4)
        self.calls += 1
        self.last = self.linear(x + self.table)
        return self.last * self.calls


class Constants(nn.Module):
    """A tensor that is no buffer, one made in the forward pass, and a buffer that is not saved."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.mean = torch.tensor([1.0, 2.0, 3.0, 4.0])
        self.register_buffer("scale", torch.tensor([1.0, -1.0, 2.0, -2.0]), persistent=False)
        self.register_buffer("seen", torch.tensor(0))

    def forward(self, x: Tensor) -> Tensor:
        self.seen += 1  # type: ignore[operator]
        return self.linear(x - self.mean) * self.scale + torch.arange(4.0) * self.seen


def assign_into(linear: nn.Module, x: Tensor) -> Tensor:
    out = torch.zeros(len(x), 8)
    out[:, :4] = linear(x)
    return out


def masked_write(linear: nn.Module, x: Tensor) -> Tensor:
    y = linear(x)
    y[y < 0] = 0.0
    return y


def branch(linear: nn.Module, x: Tensor) -> Tensor:
    return linear(x / 255 if x.max() > 1.5 else x)


def masked_attention(kind: str) -> Callable[[nn.MultiheadAttention, Tensor], Tensor]:
    def attend(layer: nn.MultiheadAttention, x: Tensor) -> Tensor:
        mask = torch.ones(6, 6).triu(1).bool()
        padding = torch.arange(6).expand(5, 6) >= 4
        options: dict[str, Any] = {"causal": {"attn_mask": mask}, "padding": {"key_padding_mask": padding}}[kind]
        return layer(x, x, x, need_weights=False, **options)[0]

    return attend


IMAGES, TOKENS, VECTORS = (
    torch.randn(5, *s, generator=torch.Generator().manual_seed(9)) for s in ((4, 8, 8), (6, 4), (4,))
)
VIT = {"image_size": 8, "patch_size": 4, "num_layers": 1, "num_heads": 2, "hidden_dim": 8, "mlp_dim": 8}
S, norms = nn.Sequential, nn.utils.parametrizations


def _heads(layer: nn.Module, x: Tensor) -> Tensor:
    return layer(x).unflatten(-1, (2, 2)).transpose(1, 2)


TOGETHER: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "batch norm": (lambda: S(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True)), IMAGES),
    "batch norm on (n, c, l)": (lambda: S(nn.BatchNorm1d(6), nn.Linear(4, 4)), TOKENS),
    "instance norm": (
        lambda: S(nn.InstanceNorm2d(4, affine=True, track_running_stats=True), nn.Conv2d(4, 2, 1)),
        IMAGES,
    ),
    "norm of the batch": (lambda: S(nn.Linear(4, 4), nn.BatchNorm1d(4, track_running_stats=False)), VECTORS),
    "group norm": (lambda: S(nn.Conv2d(4, 4, 1), nn.GroupNorm(2, 4)), IMAGES),
    "layer norm": (lambda: S(nn.Linear(4, 4), nn.LayerNorm(4)), TOKENS),
    "max pooling": (lambda: S(nn.Conv2d(4, 4, 1), nn.MaxPool2d(2), nn.Conv2d(4, 4, 1)), IMAGES),
    "depthwise": (lambda: S(nn.Conv2d(4, 8, 3, groups=4)), IMAGES),
    "patches": (lambda: S(nn.Conv2d(4, 6, 4, stride=4)), IMAGES),
    "transposed": (lambda: S(nn.ConvTranspose2d(4, 6, 3, stride=2)), IMAGES),
    "circular": (lambda: S(nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular")), IMAGES),
    "dropout": (lambda: S(nn.Linear(4, 4), nn.Dropout(0.5), nn.AlphaDropout(0.5)), VECTORS),
    "encoder layer": (lambda: S(nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)), TOKENS),
    "attention with weights": (
        lambda: Call(nn.MultiheadAttention(4, 2, batch_first=True), lambda m, x: m(x, x, x)[0]),
        TOKENS,
    ),
    "attention without weights": (
        lambda: Call(nn.MultiheadAttention(4, 2, batch_first=True), lambda m, x: m(x, x, x, need_weights=False)[0]),
        TOKENS,
    ),
    "causal attention": (
        lambda: Call(nn.MultiheadAttention(4, 2, batch_first=True), masked_attention("causal")),
        TOKENS,
    ),
    "padded attention": (
        lambda: Call(nn.MultiheadAttention(4, 2, batch_first=True), masked_attention("padding")),
        TOKENS,
    ),
    "sdpa": (
        lambda: Call(
            nn.Linear(4, 4), lambda m, x: F.scaled_dot_product_attention(_heads(m, x), _heads(m, x), _heads(m, x))
        ),
        TOKENS,
    ),
    "sdpa with a mask": (
        lambda: Call(
            nn.Linear(4, 4),
            lambda m, x: F.scaled_dot_product_attention(
                _heads(m, x), _heads(m, x), x.unsqueeze(1)[..., :2], x.new_ones(6, 6).tril().bool()
            ),
        ),
        TOKENS,
    ),
    "sdpa with a mask of the images": (
        lambda: Call(
            nn.Linear(4, 4), lambda m, x: F.scaled_dot_product_attention(m(x), x, x, (x @ x.mT).unsqueeze(1).mean(1))
        ),
        TOKENS,
    ),
    "sdpa without batch": (
        lambda: Call(nn.Linear(4, 4), lambda m, x: F.scaled_dot_product_attention(m(x), x, x, is_causal=True)),
        VECTORS,
    ),
    "weight norm": (lambda: S(norms.weight_norm(nn.Linear(4, 4))), VECTORS),
    "spectral norm": (lambda: S(norms.spectral_norm(nn.Linear(4, 4))), VECTORS),
    "embedding": (lambda: Call(nn.Embedding(10, 4), lambda m, x: m(x.long().clamp(0, 9))), VECTORS),
    "constants": (Constants, VECTORS),
    "cache on first call": (CacheOnFirstCall, VECTORS),
    "vision transformer": (lambda: build_network("vit", **VIT), IMAGES[:, :3]),
    "mobilenet": (lambda: build_network("mobilenet_v2", width_mult=0.1), IMAGES[:, :3]),
}
ONE_BY_ONE: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "lstm": (lambda: Call(nn.LSTM(4, 4, batch_first=True, bidirectional=True), lambda m, x: m(x)[0]), TOKENS),
    "gru": (lambda: Call(nn.GRU(4, 4, 2, batch_first=True), lambda m, x: m(x)[1][-1]), TOKENS),
    "assign into": (lambda: Call(nn.Linear(4, 4), assign_into), VECTORS),
    "write through a mask": (lambda: Call(nn.Linear(4, 4), masked_write), VECTORS),
    "branch on values": (lambda: Call(nn.Linear(4, 4), branch), VECTORS),
}
NETWORKS = TOGETHER | ONE_BY_ONE


def made(name: str, seed: int = 0) -> nn.Module:
    """A network in evaluation mode with weights and running statistics that are not trivial."""
    make, _ = NETWORKS[name]
    torch.manual_seed(seed)
    network = make().eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
        for key, buffer in network.named_buffers():
            if key.endswith(("running_mean", "running_var")):
                buffer.add_(torch.rand_like(buffer))
    return network
