import logging

import numpy as np
import pytest
import torch
from sklearn.svm import OneClassSVM
from voxout.data_manifests.errors import UserError
from voxout.models.encoder.checkpoint import TrainingRow
from voxout.models.encoder.monitor import TrainingMonitor, effective_rank, require_no_collapse
from voxout.models.encoder.network import PatchAutoEncoder
from voxout.models.encoder.patch_shape import PatchShape
from voxout.models.ocsvm.guidance_loss import guidance_loss
from voxout.models.settings import EncoderSettings, GuidanceSettings

AXIAL = (PatchShape("axial", 5),)


def row_of(**change):
    measured = {"guidance": 1.0, "outside_share": 0.1, "kernel_mean": 0.5, "latent_scale": 1.0, "effective_rank": 4.0}
    fixed = {"step": 50, "phase": "guided", "mse_train": 0.1, "mse_held_out": None, "learning_rate": 1e-3}
    fixed["guidance_weight"] = 1e-4
    return TrainingRow(**(fixed | measured | change))


def test_effective_rank():
    random = np.random.default_rng(0)
    full = torch.from_numpy(random.normal(size=(20000, 6)))
    assert effective_rank(full) == pytest.approx(6, rel=1e-2)
    assert effective_rank(full * torch.tensor([1, 1, 1, 0, 0, 0]) + 7) == pytest.approx(3, rel=1e-2)
    assert effective_rank(full[:, :1] * torch.ones(6)) == pytest.approx(1, rel=1e-6)
    assert effective_rank(torch.ones(5, 3)) == 0


def test_metrics_agree_with_scikit_learn_and_the_loss():
    torch.manual_seed(0)
    model = PatchAutoEncoder(1, AXIAL, EncoderSettings(latent_size=4))
    together, mixed, held_out = ((torch.rand(*n, 1, 5, 5),) for n in ((5, 12), (64,), (32,)))
    guidance = GuidanceSettings(nu=0.3, gamma="2/d")
    monitor = TrainingMonitor(mixed, held_out, together, guidance)
    row = monitor.row(model, step=7, phase="guided", learning_rate=0.1, guidance_weight=1e-4)

    def decoded(patches):
        return model.decoder(model.encoder(patches))[0]

    with torch.no_grad():
        latents = model.encoder((together[0].flatten(0, 1),)).unflatten(0, (5, 12)).double()
        fitted, held_back = latents[:, :6], latents[:, 6:]
        kernel, outside = [], []
        for own, rest in zip(fitted.numpy(), held_back.numpy(), strict=True):
            svm = OneClassSVM(nu=0.3, gamma=0.5, tol=1e-8).fit(own)
            outside.append(svm.decision_function(rest) < 0)
            kernel.append(np.exp(-0.5 * ((rest[:, None] - own[None]) ** 2).sum(-1)))
        loss = guidance_loss(fitted, held_back, nu=0.3, gamma=0.5).mean()
        assert row.mse_train == pytest.approx((decoded(mixed) - mixed[0]).square().mean().item(), rel=1e-5)
        assert row.mse_held_out == pytest.approx((decoded(held_out) - held_out[0]).square().mean().item(), rel=1e-5)
        assert row.latent_scale == pytest.approx(model.encoder(mixed).var(dim=0, correction=0).mean().sqrt().item())
    assert row.outside_share == pytest.approx(np.mean(outside))
    assert row.kernel_mean == pytest.approx(np.mean(kernel), rel=1e-6)
    assert row.guidance == pytest.approx(loss.item(), rel=1e-6)
    assert (row.step, row.phase, row.learning_rate) == (7, "guided", 0.1)


def test_without_held_out_and_without_a_split():
    model = PatchAutoEncoder(1, AXIAL, EncoderSettings(latent_size=4))
    monitor = TrainingMonitor((torch.rand(8, 1, 5, 5),), None, None, GuidanceSettings())
    row = monitor.row(model, step=1, phase="pretraining", learning_rate=0.1, guidance_weight=0.0)
    assert row.mse_held_out is row.guidance is row.outside_share is row.kernel_mean is None


@pytest.mark.parametrize("rank", [1.2, 0.0, float("nan")])
def test_collapsed_latents_stop_training(rank):
    with pytest.raises(
        UserError, match=r"after step 50 the effective rank of the latents is .* of 16, expected at least 1.5. Lower"
    ):
        require_no_collapse(row_of(effective_rank=rank), 16)


def test_one_dimensional_latents_have_rank_one():
    require_no_collapse(row_of(effective_rank=1.0), 1)


def test_saturated_kernel_warns(caplog):
    with caplog.at_level(logging.WARNING):
        require_no_collapse(row_of(), 16)
        require_no_collapse(row_of(phase="pretraining", kernel_mean=1e-9), 16)
        assert not caplog.records
        require_no_collapse(row_of(kernel_mean=1e-9), 16)
    assert "the kernel between controls is 1.0e-09 on average, near 0: guidance has no effect" in caplog.text
