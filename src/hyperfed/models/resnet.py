"""The ResNet of HyperFedNet's Table 1, to the parameter: 77,562 (MNIST), 563,642 (FMNIST), 563,930 (CIFAR-10), 2,259,716 (CIFAR-100).

conv3x3(in -> w) + BN + ReLU; three groups of ``blocks`` basic blocks of widths w, 2w, 4w (no bias, BN after each convolution); the two
widening blocks have a 1x1 stride-2 convolution as shortcut, without bias and without BN; global average pool; Linear(4w, classes).

ReLU and the sum overwrite what the norm layer wrote, which nothing else reads: the same bits in less memory.
"""

from collections.abc import Callable
from itertools import pairwise
from math import gcd

import torch
from torch import Tensor, nn

Norm = Callable[[int], nn.Module]
"""Channels -> the normalisation layer."""


def group_norm(channels: int) -> nn.Module:
    """Group norm (Wu and He, 2018) in 8 groups: every example on its own, as per-example gradients need it."""
    return nn.GroupNorm(gcd(8, channels), channels)


class BasicBlock(nn.Module):
    """conv-BN-ReLU-conv-BN, plus the shortcut, ReLU."""

    def __init__(self, width_in: int, width_out: int, norm: Norm = nn.BatchNorm2d) -> None:
        super().__init__()
        stride = 1 if width_in == width_out else 2
        self.conv1 = nn.Conv2d(width_in, width_out, 3, stride, 1, bias=False)
        self.bn1 = norm(width_out)
        self.conv2 = nn.Conv2d(width_out, width_out, 3, 1, 1, bias=False)
        self.bn2 = norm(width_out)
        self.shortcut = nn.Conv2d(width_in, width_out, 1, stride, bias=False) if stride == 2 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """[B, w_in, H, W] -> [B, w_out, H / stride, W / stride]."""
        out = torch.relu_(self.bn1(self.conv1(x)))
        return torch.relu_(self.bn2(self.conv2(out)).add_(self.shortcut(x)))


class ResNet(nn.Module):
    """Table 1's network; ``blocks`` = 1 for MNIST and 6 otherwise, ``width`` = 16 (CIFAR-100: 32)."""

    def __init__(self, channels: int, num_classes: int, width: int = 16, blocks: int = 1, norm: Norm = nn.BatchNorm2d) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, 1, 1, bias=False)
        self.bn1 = norm(width)
        widths = [width] + [width * 2**g for g in range(3) for _ in range(blocks)]
        self.blocks = nn.Sequential(*(BasicBlock(a, b, norm) for a, b in pairwise(widths)))
        self.fc = nn.Linear(4 * width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """[B, channels, H, W] -> [B, num_classes]."""
        out = self.blocks(torch.relu_(self.bn1(self.conv1(x))))
        return self.fc(out.mean((2, 3)))
