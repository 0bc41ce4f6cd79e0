"""Digits from every source, and errors for invalid data."""

import gzip
import struct

import numpy as np
import pytest
from voxout.data_manifests.errors import UserError

from benchmarks.mnist_c.corruptions import CLEAN, CORRUPTIONS
from benchmarks.mnist_c.digits import read_digits

RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.integers(0, 256, (30, 28, 28), dtype=np.uint8)
LABELS = np.arange(30) % 10


def _idx(path, array):
    header = struct.pack(">HBB", 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
    content = header + array.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def _mnist_c(folder, names=(CLEAN, *CORRUPTIONS), n_test=10):
    for number, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        images = (IMAGES + np.uint8(number))[..., None]
        for part, rows in (("train", slice(0, 30 - n_test)), ("test", slice(30 - n_test, 30))):
            np.save(folder / name / f"{part}_images.npy", images[rows])
            np.save(folder / name / f"{part}_labels.npy", LABELS[rows])


def test_scikit_learn_digits():
    digits = read_digits(None)
    assert digits.images.shape == (1797, 28, 28) and digits.images.dtype == np.uint8
    assert np.bincount(digits.labels).min() > 170
    assert not digits.images[:, :4].any() and digits.images[:, 4:24, 4:24].any(axis=(1, 2)).all()
    assert digits.test_from is None and len(digits.conditions) == 16


def test_an_npz(tmp_path):
    np.savez(tmp_path / "d.npz", images=IMAGES, labels=LABELS)
    digits = read_digits(tmp_path / "d.npz")
    np.testing.assert_array_equal(digits.images, IMAGES)
    np.testing.assert_array_equal(digits.labels, LABELS)


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_idx_files_keep_their_test_set(tmp_path, suffix):
    for part, rows in (("train", slice(0, 20)), ("t10k", slice(20, 30))):
        _idx(tmp_path / f"{part}-images-idx3-ubyte{suffix}", IMAGES[rows])
        _idx(tmp_path / f"{part}-labels-idx1-ubyte{suffix}", LABELS[rows])
    digits = read_digits(tmp_path)
    np.testing.assert_array_equal(digits.images, IMAGES)
    np.testing.assert_array_equal(digits.labels, LABELS)
    assert digits.test_from == 20


def test_mnist_c_folder(tmp_path):
    _mnist_c(tmp_path)
    digits = read_digits(tmp_path)
    assert digits.missing == () and digits.test_from == 20 and len(digits.images) == 30
    rows = np.array([25, 3, 19, 20])
    np.testing.assert_array_equal(digits.images[rows], IMAGES[rows])
    np.testing.assert_array_equal(digits.corrupted["shot_noise"][rows], IMAGES[rows] + np.uint8(1))
    np.testing.assert_array_equal(digits.labels, LABELS)


def test_missing_corruptions_are_listed(tmp_path):
    _mnist_c(tmp_path, [name for name in (CLEAN, *CORRUPTIONS) if name not in ("fog", "shear")])
    digits = read_digits(tmp_path)
    assert digits.missing == ("shear", "fog")
    assert len(digits.conditions) == 14 and "fog" not in digits.conditions


def test_fingerprint_depends_on_the_digits(tmp_path):
    np.savez(tmp_path / "a.npz", images=IMAGES, labels=LABELS)
    np.savez(tmp_path / "b.npz", images=IMAGES, labels=LABELS)
    changed = IMAGES.copy()
    changed[4, 4, 4] ^= 1
    np.savez(tmp_path / "c.npz", images=changed, labels=LABELS)
    a, b, c = (read_digits(tmp_path / f"{name}.npz").fingerprint() for name in "abc")
    assert a == b != c


def _error(path) -> str:
    with pytest.raises(UserError) as caught:
        read_digits(path)
    return str(caught.value)


@pytest.mark.parametrize(
    ("images", "labels", "sentence"),
    [
        (IMAGES[:, :8], LABELS, "d.npz: images have the shape (30, 8, 28) and type uint8, expected (N, 28, 28)"),
        (IMAGES / 255, LABELS, "d.npz: images have the shape (30, 28, 28) and type float64, expected"),
        (IMAGES, LABELS[:-1], "d.npz: labels have the shape (29,) and type int64, expected (30,) and integers"),
        (IMAGES, LABELS / 2, "d.npz: labels have the shape (30,) and type float64, expected (30,) and integers"),
        (IMAGES, LABELS + 1, "d.npz: labels range from 1 to 10, expected 0 to 9"),
    ],
)
def test_invalid_arrays(tmp_path, images, labels, sentence):
    np.savez(tmp_path / "d.npz", images=images, labels=labels)
    assert sentence in _error(tmp_path / "d.npz")


def test_an_npz_without_labels(tmp_path):
    np.savez(tmp_path / "d.npz", x=IMAGES)
    assert "d.npz: found x, expected the arrays images and labels" in _error(tmp_path / "d.npz")


def test_an_npz_that_would_run_code(tmp_path):
    np.savez(tmp_path / "d.npz", images=np.array([{}], dtype=object), labels=LABELS)
    assert "d.npz: not readable, expected an npz of plain arrays" in _error(tmp_path / "d.npz")


def test_nothing_there(tmp_path):
    assert "no such file or folder" in _error(tmp_path / "none")
    assert "found neither identity/ of MNIST-C nor IDX files of MNIST" in _error(tmp_path)
    (tmp_path / "x.txt").write_text("")
    assert "not an npz file" in _error(tmp_path / "x.txt")


def test_truncated_idx_file(tmp_path):
    _idx(tmp_path / "train-images-idx3-ubyte", IMAGES)
    _idx(tmp_path / "train-labels-idx1-ubyte", LABELS)
    content = (tmp_path / "train-images-idx3-ubyte").read_bytes()
    (tmp_path / "train-images-idx3-ubyte").write_bytes(content[:-5])
    assert "train-images-idx3-ubyte: found type 8, shape (30, 28, 28) and 23515 bytes of data" in _error(tmp_path)
    (tmp_path / "train-images-idx3-ubyte").write_bytes(content[:6])
    assert "truncated or not an IDX file" in _error(tmp_path)


def test_mnist_c_with_a_missing_file_or_different_labels(tmp_path):
    _mnist_c(tmp_path)
    np.save(tmp_path / "fog" / "test_labels.npy", LABELS[20:][::-1])
    assert "fog: labels differ from those of identity" in _error(tmp_path)
    (tmp_path / "fog" / "test_labels.npy").unlink()
    assert "fog/test_labels.npy: missing" in _error(tmp_path)
    (tmp_path / "fog" / "test_labels.npy").write_bytes(b"no array")
    assert "fog/test_labels.npy: not readable as a plain array" in _error(tmp_path)


def test_real_mnist(shared_data):
    digits = read_digits(shared_data / "mnist" / "mnist10k.npz")
    assert len(digits.labels) == 10_000 and np.bincount(digits.labels).min() > 800
