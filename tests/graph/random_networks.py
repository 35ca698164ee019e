# SPDX-License-Identifier: Apache-2.0
"""Networks drawn at random: residual sums, concatenations, grouped layers, splits, attention, norms."""

import random

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Residual(nn.Module):
    """Two convolutions beside a shortcut, with or without a projection."""

    def __init__(self, draw: random.Random, n: int) -> None:
        super().__init__()
        self.out = draw.choice([n, 2 * n])
        hidden = draw.choice([4, 6, 8])
        self.a, self.norm_a = nn.Conv2d(n, hidden, 3, padding=1, bias=False), nn.BatchNorm2d(hidden)
        self.b = nn.Conv2d(hidden, self.out, draw.choice([1, 3]), padding="same")
        self.short = nn.Identity() if self.out == n else nn.Conv2d(n, self.out, 1)

    def forward(self, x: Tensor) -> Tensor:
        return (self.b(self.norm_a(self.a(x)).relu()) + self.short(x)).relu()


class Dense(nn.Module):
    """A concatenation of the input and what is computed from it."""

    def __init__(self, draw: random.Random, n: int) -> None:
        super().__init__()
        grown = draw.choice([3, 4, 5])
        self.layer, self.first = nn.Conv2d(n, grown, 3, padding=1), draw.random() < 0.5
        self.norm = nn.BatchNorm2d(n + grown)
        self.out = n + grown

    def forward(self, x: Tensor) -> Tensor:
        y = F.silu(self.layer(x))
        return self.norm(torch.cat([x, y] if self.first else [y, x], 1))


class Grouped(nn.Module):
    """A grouped or depthwise convolution, maybe transposed, with channels shuffled."""

    def __init__(self, draw: random.Random, n: int) -> None:
        super().__init__()
        self.groups = draw.choice([g for g in (1, 2, 3, 4, n) if n % g == 0])
        self.out = n * draw.choice([1, 2])
        kind = draw.choice([nn.Conv2d, nn.ConvTranspose2d])
        self.layer = kind(n, self.out, 3, padding=1, groups=self.groups)
        self.shuffled = draw.random() < 0.5

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.layer(x))
        if self.shuffled:
            b, c, h, w = x.shape
            x = x.view(b, self.groups, c // self.groups, h, w).transpose(1, 2).reshape(b, c, h, w)
        return x


class Split(nn.Module):
    """Channels in two parts, of which one gates or passes the other by."""

    def __init__(self, draw: random.Random, n: int) -> None:
        super().__init__()
        self.how = draw.choice(["chunk", "split", "slice"])
        self.wide = nn.Conv2d(n, 2 * n, 1)
        self.left, self.out = n, n
        self.gate = draw.random() < 0.5
        self.after = nn.Conv2d(n, n, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.wide(x)
        if self.how == "chunk":
            a, b = y.chunk(2, dim=1)
        elif self.how == "split":
            a, b = y.split([self.left, y.shape[1] - self.left], dim=1)
        else:
            a, b = y[:, : self.left], y[:, self.left :]
        return a * b.sigmoid() if self.gate else self.after(a) + b


class Squeeze(nn.Module):
    """Squeeze and excite."""

    def __init__(self, draw: random.Random, n: int) -> None:
        super().__init__()
        self.out = n
        self.down, self.up = nn.Linear(n, 4), nn.Linear(4, n)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.up(self.down(x.mean((2, 3))).relu()).sigmoid()[:, :, None, None]


class Normed(nn.Module):
    """One of the norms, over groups or over all channels, with a scale of its own."""

    def __init__(self, draw: random.Random, n: int) -> None:
        super().__init__()
        self.out = n
        self.kind = draw.choice(["group", "layer", "instance", "hand"])
        self.layer = nn.Conv2d(n, n, 1)
        groups = draw.choice([g for g in (1, 2, n) if n % g == 0])
        self.norm = {
            "group": nn.GroupNorm(groups, n),
            "layer": nn.LayerNorm(n),
            "instance": nn.InstanceNorm2d(n, affine=True),
            "hand": nn.Identity(),
        }[self.kind]
        self.scale = nn.Parameter(torch.rand(n, 1, 1) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer(x)
        if self.kind == "layer":
            return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2) * self.scale
        if self.kind == "hand":
            return x * torch.rsqrt(x.pow(2).mean(1, keepdim=True) + 1e-5) * self.scale
        return self.norm(x) * self.scale


class Attention(nn.Module):
    """Attention over positions: packed or separate projections, fused or by hand, grouped queries or not."""

    def __init__(self, draw: random.Random, n: int) -> None:
        super().__init__()
        self.heads, self.head_dim = draw.choice([2, 4]), draw.choice([2, 3])
        self.kv_heads = draw.choice([1, 2]) if draw.random() < 0.5 else self.heads
        self.out, inner = n, self.heads * self.head_dim
        self.packed = self.kv_heads == self.heads and draw.random() < 0.5
        self.fused = draw.random() < 0.5
        if self.packed:
            self.qkv = nn.Linear(n, 3 * inner)
        else:
            self.q = nn.Linear(n, inner)
            self.k = nn.Linear(n, self.kv_heads * self.head_dim)
            self.v = nn.Linear(n, self.kv_heads * self.head_dim)
        self.proj, self.norm = nn.Linear(inner, n), nn.LayerNorm(n)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        t = self.norm(x.flatten(2).transpose(1, 2))
        if self.packed:
            packed = self.qkv(t).reshape(b, h * w, 3, self.heads, self.head_dim)
            q, k, v = packed.permute(2, 0, 3, 1, 4).unbind(0)
        else:
            q = self.q(t).view(b, h * w, self.heads, self.head_dim).transpose(1, 2)
            k = self.k(t).view(b, h * w, self.kv_heads, self.head_dim).transpose(1, 2)
            v = self.v(t).view(b, h * w, self.kv_heads, self.head_dim).transpose(1, 2)
            k, v = (z.repeat_interleave(self.heads // self.kv_heads, 1) for z in (k, v))
        if self.fused:
            y = F.scaled_dot_product_attention(q, k, v)
        else:
            y = ((q @ k.transpose(-2, -1)) * self.head_dim**-0.5).softmax(-1) @ v
        y = self.proj(y.transpose(1, 2).reshape(b, h * w, -1))
        return x + y.transpose(1, 2).reshape(b, c, h, w)


BLOCKS = (Residual, Dense, Grouped, Split, Squeeze, Normed, Attention)


class RandomNet(nn.Module):
    """A stem, two to four random blocks and a classifier; input (B, 3, 6, 6), output (B, 5)."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        draw = random.Random(seed)
        torch.manual_seed(seed)
        width = draw.choice([4, 6, 8, 12])
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        blocks = []
        for _ in range(draw.randint(2, 4)):
            block = draw.choice(BLOCKS)(draw, width)
            width = block.out
            blocks.append(block)
        self.blocks = nn.Sequential(*blocks)
        self.pooled = draw.random() < 0.5
        self.head = nn.Linear(width if self.pooled else width * 9, 5)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.stem(x).relu())
        x = x.mean((2, 3)) if self.pooled else F.avg_pool2d(x, 2).flatten(1)
        return self.head(x)
