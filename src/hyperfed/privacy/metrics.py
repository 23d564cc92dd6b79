"""How near a recovered image is to the original."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from skimage.metrics import structural_similarity
from torch import Tensor

CAP = 100.0
SUCCESS = 20.0
"""A recovery of at least so many dB counts as a success."""


class Quality(NamedTuple):
    """dB, dB after the best gain and offset, structural similarity."""

    psnr: float
    psnr_affine: float
    ssim: float


def psnr(recovered: Tensor, original: Tensor) -> float:
    """20 log10(255 / sqrt(MSE)) of images scaled to [0, 255] (HyperFedNet, 5.3): not rounded, clipped to the range, at most 100."""
    error = (255 * (recovered.double().clamp(0, 1) - original.double())).square().mean()
    return min(CAP, float(20 * torch.log10(255 / error.sqrt())))


def psnr_affine(recovered: Tensor, original: Tensor) -> float:
    """The PSNR of the best a + b x: an image with wrong contrast still shows what is in it."""
    x = recovered.double().flatten()
    columns = torch.stack([x, torch.ones_like(x)], 1)
    fit = columns @ torch.linalg.lstsq(columns, original.double().flatten()[:, None], driver="gelsd").solution
    return psnr(fit.reshape(original.shape), original)


def ssim(recovered: Tensor, original: Tensor) -> float:
    """Structural similarity (Wang et al., 2004) of images [channels, H, W], as scikit-image computes it."""
    a, b = (np.asarray(255 * t.double().clamp(0, 1)) for t in (recovered, original))
    return float(structural_similarity(a, b, data_range=255, channel_axis=0))


def quality(recovered: Tensor, original: Tensor) -> Quality:
    """All three, of one image [channels, H, W]."""
    return Quality(psnr(recovered, original), psnr_affine(recovered, original), ssim(recovered, original))


def paired(recovered: Tensor, originals: Tensor) -> Tensor:
    """The recovered images [B, ...] in the order of the originals, each taken once: the order within a batch is not in its gradient."""
    from scipy.optimize import linear_sum_assignment

    cost = torch.cdist(originals.flatten(1), recovered.flatten(1)).square()
    return recovered[torch.from_numpy(linear_sum_assignment(cost.numpy())[1])]


def floors(original: Tensor, others: Sequence[Tensor]) -> dict[str, float]:
    """What needs no attack: the PSNR of black, of mid grey, and of the mean of other images."""
    mean = torch.stack(list(others)).mean(0)
    return {"black": psnr(0 * original, original), "grey": psnr(0 * original + 0.5, original), "mean": psnr(mean, original)}
