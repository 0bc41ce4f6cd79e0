"""Codes that are drawn again: the order of draws, likelihoods, masks."""

from itertools import pairwise

import pytest
import torch
from torch import nn
from voxout.models.rivals.scans import Controls
from voxout.models.rivals.slices import Slices
from voxout.models.rivals.vqvae_transformer import VqvaeTransformer, _Codes, redraw, smooth_mask

from .small_heads import SMALL

N_CODES = 32


class _Chain(nn.Module):
    """Each code depends on the one before it, by a table of logits, (33, 33)."""

    def __init__(self, seed: int = 0):
        super().__init__()
        self.table = 2 * torch.randn((N_CODES + 1, N_CODES + 1), generator=torch.Generator().manual_seed(seed))
        self.calls = 0
        self.max_seq_len = 10

    def forward(self, x: torch.Tensor, context: object = None) -> torch.Tensor:
        self.calls += 1
        return self.table[x]


def _one_by_one(chain: _Chain, codes: torch.Tensor, chosen: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    found = codes.clone()
    for row in range(len(codes)):
        for place in range(codes.shape[1]):
            if chosen[row, place]:
                before = N_CODES if place == 0 else int(found[row, place - 1])
                p = chain.table[before, :N_CODES].softmax(dim=0)
                found[row, place] = min(int((p.cumsum(0) <= uniform[place]).sum()), N_CODES - 1)
    return found


def test_drawing_all_at_once_until_nothing_changes_is_drawing_one_by_one():
    generator = torch.Generator().manual_seed(3)
    chain = _Chain()
    codes = torch.randint(N_CODES, (20, 40), generator=generator)
    chosen = torch.rand((20, 40), generator=generator) < 0.5
    uniform = torch.rand(40, generator=generator)
    expected = _one_by_one(chain, codes, chosen, uniform)
    found = redraw(chain, codes, chosen, uniform, passes=100)
    assert torch.equal(found, expected)
    assert torch.equal(found[~chosen], codes[~chosen])
    assert not torch.equal(found[chosen], codes[chosen])
    # It ends as soon as nothing changes, and needs no pass per code.
    assert chain.calls < 40
    # Fewer passes are right from the beginning up to the number of redrawn codes that each of them corrects.
    first = redraw(chain, codes, torch.ones_like(chosen), uniform, passes=3)
    assert torch.equal(first[:, :3], _one_by_one(chain, codes, torch.ones_like(chosen), uniform)[:, :3])


def test_codes_are_drawn_as_often_as_they_are_likely():
    uniform = (torch.arange(2000) + 0.5) / 2000
    logits = torch.full((N_CODES + 1,), -30.0)
    logits[4], logits[9], logits[N_CODES] = 0.0, torch.tensor(3.0).log(), 9.0  # the mark of the start is never drawn

    class Fixed(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return logits.expand(*x.shape, -1)

    codes = redraw(Fixed(), torch.zeros((1, 2000), dtype=torch.long), torch.ones((1, 2000), dtype=torch.bool), uniform)
    assert (codes == 4).sum() == 500
    assert (codes == 9).sum() == 1500


def test_a_mask_of_codes_falls_from_one_to_zero_over_a_code():
    mask = torch.zeros((1, 4, 4), dtype=torch.bool)
    mask[0, 1, 2] = True
    smooth = smooth_mask(mask, torch.Size((16, 16)))[0]
    assert smooth.max() == pytest.approx(0.875**2)
    assert torch.nonzero(smooth).min(dim=0).values.tolist() == [2, 6]
    assert torch.nonzero(smooth).max(dim=0).values.tolist() == [9, 13]
    assert smooth_mask(torch.ones_like(mask), torch.Size((16, 16))).min() == 1


class _KnownCodes(nn.Module):
    """Codes of a slice: its brightness in 32 steps at each fourth voxel; decoded to that brightness."""

    num_embeddings = N_CODES

    def index_quantize(self, images: torch.Tensor) -> torch.Tensor:
        return (images[:, 0, ::4, ::4] * N_CODES).long().clamp(max=N_CODES - 1)

    def decode_samples(self, codes: torch.Tensor) -> torch.Tensor:
        grey = (codes.float() + 0.5) / N_CODES
        return grey.repeat_interleave(4, 1).repeat_interleave(4, 2)[:, None]


def _fitted(chain: nn.Module, height: int, width: int) -> VqvaeTransformer:
    from monai.utils.ordering import Ordering

    rival = VqvaeTransformer()
    rival.codes, rival.network, rival.preset = _Codes(), chain, SMALL
    rival.codes.network = _KnownCodes()
    rival.ordering = Ordering("raster_scan", 2, (1, height, width))
    return rival


def test_cross_entropy_of_known_codes():
    chain = _Chain()
    images = torch.rand((3, 1, 8, 12), generator=torch.Generator().manual_seed(0))
    batch = Slices(images, torch.ones((3, 1, 8, 12), dtype=torch.bool))
    total, count = 0.0, 0
    for codes in _KnownCodes().index_quantize(images).flatten(1).tolist():
        for before, code in pairwise([N_CODES, *codes]):
            total -= chain.table[before].log_softmax(dim=0)[code].item()
            count += 1
    chain.max_seq_len = 6
    loss = _fitted(chain, 2, 3).loss(chain, batch, torch.Generator()).item()
    assert loss == pytest.approx(total / count, rel=1e-5)


def test_only_slices_with_an_unlikely_code_are_scored_and_only_near_it():
    class Sure(nn.Module):
        """Expects code 16 everywhere."""

        max_seq_len = 16

        def forward(self, x: torch.Tensor, context: object = None) -> torch.Tensor:
            logits = torch.zeros((*x.shape, N_CODES + 1))
            logits[..., 16] = 20.0
            return logits

    images = torch.full((2, 1, 16, 16), 16.5 / N_CODES)
    images[1, 0, 4:8, 8:12] = 0.99
    scores = _fitted(Sure(), 4, 4).slice_scores(Slices(images, torch.ones_like(images, dtype=torch.bool)))
    assert scores[0].max() == 0
    # The code is drawn again as 16: at the corner of the block the mask is .875^2, beside it nothing differs.
    assert scores[1, 5, 9].item() == pytest.approx(0.875**2 * (0.99 - 16.5 / N_CODES), rel=1e-4)
    assert scores[1, 3, 9] == 0


def test_the_codebook_starts_with_codes_of_the_brain(tmp_path):
    from voxout.models.rivals.slices import SliceBatches, SliceFrame
    from voxout.models.rivals.training import initial_network

    from .small_heads import controls

    own: Controls = controls(tmp_path, count=5)
    frame = SliceFrame.around(own.mask)
    batches = SliceBatches.of(own, own.keys, frame, 0)
    network = initial_network(lambda: _Codes().make(1, frame.size, SMALL), 0, "cpu")
    _Codes().initialise(network, batches)
    found = network.encode(batches[0].images).movedim(1, -1).reshape(-1, N_CODES)
    distance = torch.cdist(network.quantizer.quantizer.embedding.weight, found).min(dim=1).values
    assert distance.max() < 1e-3
    used = network.eval().index_quantize(batches[0].images).unique()
    assert len(used) > N_CODES // 2
