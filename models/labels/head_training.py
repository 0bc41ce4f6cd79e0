"""Training of a head on a few labelled patients.

Each of up to four networks is trained without some of the patients, and the head is their mean. With a variance weight
above 0, the variance over the networks of the predicted probabilities is added to the loss: a part of the head that
differs with the patients it was learnt from is suppressed. That the variance error is minimised explicitly follows
Shubin et al. (arXiv 2105.14117); it is estimated here over networks of different patients, which a few patients allow,
and not as there.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from ...data_manifests.threads import one_torch_thread
from .head import LARGEST_FACTOR, Head, head_inputs, standardised
from .labelled_voxels import LabelledVoxels
from .weights import Combine

_HIDDEN, _NETWORKS, _STEPS, _LEARNING_RATE = 8, 4, 150, 0.02
_VOXELS = 3000
"""Largest number of lesion voxels, and of healthy ones, of a patient."""
_SHRINKAGE = 0.05
"""Weight of the mean square of the logarithm of the factor, relative to its largest value."""
_DECAY = 1e-3
_SMALLEST = 0.01
"""Added to -log10 p before the logarithm."""


@dataclass(frozen=True, eq=False)
class _Data:
    inputs: torch.Tensor
    base: torch.Tensor
    lesion: torch.Tensor
    weight: torch.Tensor
    patient: np.ndarray


def train_head(
    patients: Sequence[LabelledVoxels],
    weights: np.ndarray,
    combine: Combine,
    *,
    variance_weight: float = 0.0,
    seed: int = 0,
) -> Head:
    """Train a head.

    Parameters
    ----------
    patients : sequence of LabelledVoxels
    weights : ndarray, (K,)
        Of the scorers.
    combine : callable
    variance_weight : float
        Weight of the variance over the networks of the predicted probabilities.
    seed : int
    """
    random = np.random.default_rng(seed)
    fewer = [patient.fewer(_VOXELS, random) for patient in patients]
    inputs = [head_inputs(patient.values, patient.latents) for patient in fewer]
    every, counts = np.concatenate(inputs), np.concatenate([p.counts / p.counts.sum() for p in fewer])
    known = np.isfinite(every)
    share = counts[:, None] * known / (counts[:, None] * known).sum(axis=0)
    filled = np.where(known, every, 0)
    centre = (share * filled).sum(axis=0)
    scale = np.sqrt((share * np.square(filled - centre)).sum(axis=0)).clip(1e-3)
    centre, scale = centre.astype(np.float32), scale.astype(np.float32)
    data = _Data(
        torch.from_numpy(standardised(every, centre, scale).astype(np.float32)),
        torch.from_numpy(
            np.concatenate([np.log(_SMALLEST + combine(weights[:, None] * p.values)) for p in fewer]).astype(np.float32)
        ),
        torch.from_numpy(np.concatenate([p.lesion for p in fewer]).astype(np.float32)),
        torch.from_numpy(np.concatenate([_balanced(p) for p in fewer]).astype(np.float32)),
        np.repeat([p.participant for p in fewer], [len(p.lesion) for p in fewer]),
    )
    with one_torch_thread():
        hidden, bias, out = _trained(data, variance_weight, seed)
    n_latents = 0 if fewer[0].latents is None else fewer[0].latents.shape[1]
    return Head(centre, scale, hidden, bias, out, n_latents)


def _balanced(patient: LabelledVoxels) -> np.ndarray:
    """Weight of each voxel in the loss, with the sum 1: lesions have half of it.

    Healthy voxels are not weighted by `counts`, so that those that look most unusual have a large part: they are the
    false positives.
    """
    lesion = patient.lesion
    return np.where(lesion, 0.5 / max(lesion.sum(), 1), 0.5 / max((~lesion).sum(), 1))


def _left_out(patient: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Voxels that each network learns from, (M, N) float32: those of all participants but some."""
    names = random.permutation(np.unique(patient))
    parts = np.array_split(names, min(_NETWORKS, len(names)))
    if len(parts) == 1:
        return np.ones((1, len(patient)), np.float32)
    return np.stack([~np.isin(patient, part) for part in parts]).astype(np.float32)


def _trained(data: _Data, variance_weight: float, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    generator = torch.Generator().manual_seed(seed)
    used = torch.from_numpy(_left_out(data.patient, np.random.default_rng(seed))) * data.weight
    used /= used.sum(dim=1, keepdim=True)
    n_networks, d = len(used), data.inputs.shape[1]
    hidden = (torch.randn(n_networks, d, _HIDDEN, generator=generator) / np.sqrt(d)).requires_grad_()
    bias = torch.zeros(n_networks, 1, _HIDDEN, requires_grad=True)
    out = torch.zeros(n_networks, _HIDDEN, 1, requires_grad=True)
    # Of the probability: slope (its logarithm) and intercept.
    line = torch.zeros(n_networks, 2, requires_grad=True)
    parameters = [hidden, bias, out, line]
    optimiser = torch.optim.Adam(parameters, _LEARNING_RATE)
    everywhere = data.weight / data.weight.sum()
    for _ in range(_STEPS):
        optimiser.zero_grad()
        level = torch.tanh((torch.tanh(data.inputs @ hidden + bias) @ out)[:, :, 0])
        logits = line[:, :1].exp() * (data.base + np.log(LARGEST_FACTOR) * level) + line[:, 1:]
        lesion = data.lesion.expand_as(logits)
        losses = functional.binary_cross_entropy_with_logits(logits, lesion, reduction="none")
        loss = (used * losses).sum(dim=1).mean() + _SHRINKAGE * (everywhere * level.square()).sum(dim=1).mean()
        loss = loss + _DECAY * (hidden.square().sum() + out.square().sum()) / n_networks
        if variance_weight > 0 and n_networks > 1:
            loss = loss + variance_weight * (everywhere * torch.sigmoid(logits).var(dim=0)).sum()
        loss.backward()
        optimiser.step()
    return hidden.detach().numpy(), bias.detach().numpy()[:, 0], out.detach().numpy()[:, :, 0]
