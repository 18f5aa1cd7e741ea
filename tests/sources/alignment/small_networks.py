"""Small networks for the alignment tests: every layer that has a rule, and some that have none."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def mlp() -> nn.Module:
    return nn.Sequential(
        nn.Linear(6, 16),
        nn.BatchNorm1d(16),
        nn.ReLU(),
        nn.Linear(16, 12),
        nn.LayerNorm(12),
        nn.GELU(),
        nn.Linear(12, 3),
    )


class Residual(nn.Module):
    """A little ResNet: stem, two residual blocks with batch normalisation, one of them with a projection, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.inner = nn.ModuleList([_branch(8, 6, 8), _branch(8, 10, 12)])
        self.project = nn.Sequential(nn.Conv2d(8, 12, 1, bias=False), nn.BatchNorm2d(12))
        self.head = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = F.relu(x + self.inner[0](x))
        out = self.inner[1](x)
        out += self.project(x)
        return self.head(torch.flatten(F.adaptive_avg_pool2d(F.relu(out), (1, 1)), 1))


class Transformer(nn.Module):
    """Tokens with a position table and a class token, two encoder layers."""

    def __init__(self, norm_first: bool = False) -> None:
        super().__init__()
        self.embed = nn.Linear(5, 16)
        self.token = nn.Parameter(torch.randn(1, 1, 16))
        self.position = nn.Parameter(torch.randn(1, 8, 16))
        layer = nn.TransformerEncoderLayer(16, 4, 24, dropout=0.1, batch_first=True, norm_first=norm_first)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], dim=1)
        return self.head(self.encoder(x + self.position)[:, 0])


class CrossAttention(nn.Module):
    """Attention whose queries, keys and values have sizes of their own."""

    def __init__(self, mask_heads: bool = False) -> None:
        super().__init__()
        self.query, self.key, self.value = nn.Linear(5, 8), nn.Linear(5, 6), nn.Linear(5, 10)
        self.attention = nn.MultiheadAttention(8, 4, kdim=6, vdim=10, batch_first=True)
        self.head = nn.Linear(8, 3)
        self.mask_heads = mask_heads

    def forward(self, x: Tensor) -> Tensor:
        mask = torch.arange(2 * 4 * 7 * 7).reshape(8, 7, 7) % 5 == 1 if self.mask_heads else None
        out, _ = self.attention(self.query(x), self.key(x), self.value(x), attn_mask=mask)
        return self.head(out).mean(1)


class Concatenated(nn.Module):
    """Two branches side by side; what they make stays, what is inside them moves."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = _branch(3, 6, 4), _branch(3, 8, 5)
        self.head = nn.Linear(9, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.cat([self.first(x), self.second(x)], 1).mean((2, 3)))


class Grouped(nn.Module):
    """Depthwise convolution, squeeze-and-excitation, PReLU, group normalisation, then convolution in groups."""

    def __init__(self) -> None:
        super().__init__()
        self.expand = nn.Conv2d(3, 12, 1)
        self.depthwise = nn.Conv2d(12, 12, 3, padding=1, groups=12)
        self.norm, self.slopes = nn.GroupNorm(3, 12), nn.PReLU(12)
        self.squeeze, self.excite = nn.Conv2d(12, 4, 1), nn.Conv2d(4, 12, 1)
        self.middle, self.instance = nn.Conv2d(12, 8, 3), nn.GroupNorm(8, 8)
        self.grouped = nn.Conv2d(8, 6, 3, groups=2)
        self.head = nn.Linear(6 * 16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.slopes(self.norm(self.depthwise(self.expand(x))))
        x = x * torch.sigmoid(self.excite(F.relu(self.squeeze(x.mean((2, 3), keepdim=True)))))
        return self.head(self.grouped(F.relu(self.instance(self.middle(x)))).flatten(1))


class ChannelsLast(nn.Module):
    """ConvNeXt's way: permute, layer normalisation, linear layers, a scale of its own, and back."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 2, stride=2), nn.LayerNorm(8)
        self.up, self.down = nn.Linear(8, 20), nn.Linear(20, 8)
        self.scale = nn.Parameter(torch.rand(8, 1, 1))
        self.pool, self.head = nn.AvgPool2d(2), nn.Sequential(nn.Flatten(), nn.Linear(8 * 4, 3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        inner = self.down(F.gelu(self.up(self.norm(x.permute(0, 2, 3, 1))))).permute(0, 3, 1, 2)
        return self.head(self.pool(x + self.scale * inner))


class Unknown(nn.Module):
    """Sorting along units, control flow on values inside a part, picking units, a weight used by two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(6, 10), nn.Linear(10, 8), nn.Linear(8, 7)
        self.gate = _Gate()
        self.fourth, self.fifth = nn.Linear(7, 7), nn.Linear(7, 9)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.sort(self.first(x)).values
        x = self.gate(self.second(x))
        x = torch.relu(self.fourth(torch.relu(self.third(x))))
        x = torch.relu(self.fifth(self.fourth(x)))
        return self.head(x[:, 3:7])


class _Gate(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.arange(x.shape[-1]) if x.sum() > 0 else -x * torch.arange(x.shape[-1])


def _branch(inputs: int, middle: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, middle, 3, padding=1, bias=False),
        nn.BatchNorm2d(middle),
        nn.ReLU(),
        nn.Conv2d(middle, outputs, 3, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
    )
