"""Network, training and read-outs."""

import numpy as np
import pytest
import torch
from sklearn.svm import OneClassSVM
from voxout.data_manifests.errors import UserError

from benchmarks.mnist_c.networks import LATENT_SIZE, AutoEncoder
from benchmarks.mnist_c.objectives import Guidance, Siamese, Sphere
from benchmarks.mnist_c.read_outs import NU, NetworkScorer
from benchmarks.mnist_c.training import (
    LAST,
    Recipe,
    TrainingSettings,
    _batches,
    encode,
    reconstruction_error,
    train,
    warm_up,
)
from benchmarks.mnist_c.watch import LatentFilm, flattened, monitor

SHORT = TrainingSettings(warm_up_steps=12, steps=20)


@pytest.fixture(scope="module")
def images(digits) -> torch.Tensor:
    ones = digits.images[digits.labels == 1][:140]
    return torch.from_numpy(ones).float().div(255).unsqueeze(1)


@pytest.fixture(scope="module")
def warm(images) -> AutoEncoder:
    return warm_up(images, SHORT, variational=False, seed=0)


def test_shapes_and_biases():
    model = AutoEncoder(variational=True)
    latents = model.encoder(torch.rand(5, 1, 28, 28))
    assert latents.shape == (5, LATENT_SIZE) and model.decoder(latents).shape == (5, 1, 28, 28)
    assert [tuple(model.encoder.conv1.weight.shape), tuple(model.encoder.conv2.weight.shape)] == [
        (4, 1, 5, 5),
        (8, 4, 5, 5),
    ]
    assert [name for name, _ in model.named_parameters() if "bias" in name] == ["decoder.conv2.bias"]


def test_zero_images_have_zero_latents():
    # Without biases, constant latents other than 0 would need constant features.
    model = AutoEncoder().eval()
    assert not model.encoder(torch.zeros(2, 1, 28, 28)).any()


def test_every_epoch_uses_each_digit_once():
    rows = torch.arange(130)
    batches = list(_batches(rows, 64, 6, seed=1))
    for first, second in zip(batches[::2], batches[1::2], strict=True):
        assert len(torch.cat([first, second]).unique()) == 128
    assert not torch.equal(batches[0], batches[2])


def test_training_depends_on_the_seed_and_does_not_change_the_warm_up(images, warm):
    before = {name: tensor.clone() for name, tensor in warm.state_dict().items()}
    recipe = Recipe(terms=(Guidance(1e-3, NU),))
    a, b = (train(recipe, warm, images, SHORT, seed=3) for _ in range(2))
    c = train(recipe, warm, images, SHORT, seed=4)
    assert torch.equal(encode(a.model, images), encode(b.model, images))
    assert not torch.equal(encode(a.model, images), encode(c.model, images))
    assert all(torch.equal(tensor, before[name]) for name, tensor in warm.state_dict().items())


def test_training_reduces_the_loss_terms(images, warm):
    longer = TrainingSettings(warm_up_steps=12, steps=60)
    plain = train(Recipe(), warm, images, longer, seed=0)
    error = reconstruction_error(warm, images, encode(warm, images)).mean()
    assert reconstruction_error(plain.model, images, encode(plain.model, images)).mean() < 0.8 * error

    sphere = train(Recipe(reconstructs=False, terms=(Sphere(),)), warm, images, longer, seed=0)
    start = Sphere().start(encode(warm, images))
    assert (
        sphere.terms[0].distance(encode(sphere.model, images)).mean()
        < 0.2 * start.distance(encode(warm, images)).mean()
    )

    siamese = train(Recipe(terms=(Siamese(1.0),)), warm, images, longer, seed=0)
    assert Siamese(1.0)(encode(siamese.model, images), 0) < 0.5 * Siamese(1.0)(encode(plain.model, images), 0)


def test_variational_network_learns_its_variance(images):
    warm = warm_up(images, SHORT, variational=True, seed=0)
    before = warm.encoder.log_variance.weight.clone()
    trained = train(Recipe(variational=True), warm, images, SHORT, seed=0)
    assert not torch.equal(trained.model.encoder.log_variance.weight, before)
    assert torch.equal(encode(trained.model, images), encode(trained.model, images)), "latents are means"


def test_non_finite_loss(images, warm):
    with pytest.raises(UserError, match="the loss is nan at step 0, expected a finite number"):
        train(Recipe(), warm, images * float("nan"), SHORT, seed=0)


def test_read_outs_agree_with_scikit_learn(images, warm):
    recipe = Recipe(terms=(Guidance(1e-3, NU, standardised=True),))
    trained = train(recipe, warm, images, SHORT, seed=0)
    scorer = NetworkScorer.fit(trained, recipe, ("reconstruction", "ocsvm", "last-10"), images)
    scores = scorer.score(images[:50])
    latents = encode(trained.model, images).numpy().astype(np.float64)
    standard = (latents - latents.mean(axis=0)) / (latents.std(axis=0) + 1e-6)
    reference = OneClassSVM(nu=NU, gamma="scale", tol=1e-9).fit(standard)
    np.testing.assert_allclose(scores["ocsvm"], -reference.decision_function(standard[:50]), atol=1e-4)

    assert trained.supports.shape == (LAST, SHORT.batch // 2, LATENT_SIZE)
    expected = np.zeros(50)
    for support in (trained.supports.numpy() - latents.mean(axis=0)) / (latents.std(axis=0) + 1e-6):
        expected -= OneClassSVM(nu=NU, gamma="scale", tol=1e-9).fit(support).decision_function(standard[:50]) / LAST
    np.testing.assert_allclose(scores["last-10"], expected, atol=1e-4)
    np.testing.assert_allclose(
        scores["reconstruction"],
        ((trained.model(images[:50]) - images[:50]) ** 2).mean(dim=(1, 2, 3)).detach().numpy(),
        rtol=1e-4,
    )


def test_distance_is_to_the_initial_centre(images, warm):
    recipe = Recipe(reconstructs=False, terms=(Sphere(),))
    trained = train(recipe, warm, images, SHORT, seed=0)
    scores = NetworkScorer.fit(trained, recipe, ("distance",), images).score(images)["distance"]
    centre = Sphere().start(encode(warm, images)).centre
    np.testing.assert_allclose(scores, ((encode(trained.model, images) - centre) ** 2).sum(dim=1).numpy(), rtol=1e-5)


def test_collapse_is_detected(images, warm):
    assert not monitor(warm, images, images).collapsed
    flat = AutoEncoder()
    flat.load_state_dict(warm.state_dict())
    with torch.no_grad():
        flat.encoder.code.weight[1:] = 0
    metrics = monitor(flat, images, images)
    assert metrics.collapsed and metrics.effective_rank == pytest.approx(1, abs=1e-3)


def test_film_starts_with_the_warm_up_and_ends_with_the_trained_network(images, warm):
    film = LatentFilm(images[:30], np.arange(30) > 20)
    trained = train(Recipe(), warm, images, SHORT, seed=0, watch=film)
    assert film.shares == [0, 0.2, 0.4, 0.6, 0.8, 1]
    np.testing.assert_array_equal(film.frames[0], encode(warm, images[:30]).numpy())
    np.testing.assert_array_equal(film.frames[-1], encode(trained.model, images[:30]).numpy())
    points = flattened(film.frames)
    assert points.shape == (6, 30, 2)
    np.testing.assert_allclose(points[-1].mean(axis=0), 0, atol=1e-9)
    assert points[-1, :, 0].std() == pytest.approx(1)
    unmonitored = train(Recipe(), warm, images, SHORT, seed=0)
    assert torch.equal(encode(unmonitored.model, images), encode(trained.model, images)), (
        "monitoring does not change the training"
    )
