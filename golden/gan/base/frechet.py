"""The Frechet distance between two sets of pictures (Heusel et al., 2017), in features of a random network.

An untrained network tells sets apart too (Naeem et al., 2020); it takes pictures of any size, and nothing has
to be downloaded. Its distances are not those of Inception's features: compare them on the same data only.
"""

import math

import torch
import torch.nn.functional as F


def features(images: torch.Tensor) -> torch.Tensor:
    """(batch, channels, height, width) to (batch, 128), by two convolutions with always the same weights."""
    generator = torch.Generator().manual_seed(0)
    x = images
    for channels in (16, 32):
        weight = torch.randn(channels, x.shape[1], 3, 3, generator=generator)
        weight *= math.sqrt(2 / weight[0].numel())  # so that activations keep their size (He et al., 2015)
        x = F.avg_pool2d(F.relu(F.conv2d(x, weight.to(x), padding=1)), 2)
    return F.adaptive_avg_pool2d(x, 2).flatten(1)


def moments(images: torch.Tensor) -> torch.Tensor:
    """Number, sum and products of the features in one matrix, (129, 129), which adds up over batches."""
    x = F.pad(features(images).cpu().double(), (1, 0), value=1)
    return x.T @ x


def frechet_distance(one: torch.Tensor, other: torch.Tensor) -> float:
    """Of two sets, by their moments: zero where means and covariances of the features agree."""
    (mean1, cov1), (mean2, cov2) = mean_and_covariance(one), mean_and_covariance(other)
    root = torch.linalg.eigvals(cov1 @ cov2).real.clamp(min=0).sqrt()  # of the product's square root
    return ((mean1 - mean2).square().sum() + cov1.trace() + cov2.trace() - 2 * root.sum()).item()


def mean_and_covariance(total: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    mean = total[0, 1:] / total[0, 0]
    return mean, total[1:, 1:] / total[0, 0] - mean.outer(mean)
