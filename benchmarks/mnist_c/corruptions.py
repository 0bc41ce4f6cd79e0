"""The 15 corruptions of MNIST-C at its severities, implemented from their definitions.

Mu and Gilmer, MNIST-C: a robustness benchmark for computer vision, 2019. Details that the definition leaves open (such
as the start of a line) are documented at the functions. Images are arrays (N, 28, 28) in [0, 1]; the result is clipped,
multiplied by 255 and rounded.

The corruption of a digit depends only on the seed, the corruption and the number of the digit, not on the other digits.
"""

from collections.abc import Callable, Sequence

import numpy as np
from scipy.ndimage import affine_transform, gaussian_filter
from skimage.color import hsv2rgb, rgb2hsv
from skimage.feature import canny

CLEAN = "identity"
_EDGE = 28
_CENTRE = (_EDGE - 1) / 2

Randoms = Sequence[np.random.Generator]
"""One generator per image."""


def corrupt(name: str, images: np.ndarray, numbers: np.ndarray, seed: int) -> np.ndarray:
    """Corrupt digits.

    Parameters
    ----------
    name : str
        One of `CORRUPTIONS`, or "identity".
    images : ndarray of uint8, (N, 28, 28)
    numbers : ndarray of int, (N,)
        Number of each digit in its data set.
    seed : int

    Returns
    -------
    ndarray of uint8, (N, 28, 28)
    """
    if name == CLEAN:
        return images.copy()
    stream = list(CORRUPTIONS).index(name)
    randoms = [np.random.default_rng((seed, stream, int(number))) for number in numbers]
    changed = CORRUPTIONS[name](images / 255, randoms)
    return np.rint(255 * np.clip(changed, 0, 1)).astype(np.uint8)


def shot_noise(images: np.ndarray, randoms: Randoms) -> np.ndarray:
    """Poisson noise: Poisson(3x) / 3."""
    return np.stack([random.poisson(3 * x) / 3 for x, random in zip(images, randoms, strict=True)])


def impulse_noise(images: np.ndarray, randoms: Randoms) -> np.ndarray:
    """Set 17 % of the pixels to white or black with equal probability."""
    drawn = np.stack([random.random((2, _EDGE, _EDGE)) for random in randoms])
    return np.where(drawn[:, 0] < 0.17, (drawn[:, 1] < 0.5).astype(float), images)


def glass_blur(images: np.ndarray, randoms: Randoms) -> np.ndarray:
    """Blur, swap each pixel twice with one up to one step above and left of it, and blur again."""
    blurred = _blur(images, 0.7)
    offsets = np.stack([random.integers(-1, 1, (2, _EDGE, _EDGE, 2)) for random in randoms])
    every = np.arange(len(images))
    for turn in range(2):
        for row in range(_EDGE - 1, 0, -1):
            for column in range(_EDGE - 1, 0, -1):
                up, left = offsets[:, turn, row, column].T
                there = every, row + up, column + left
                kept = blurred[there]
                blurred[there] = blurred[:, row, column]
                blurred[:, row, column] = kept
    return _blur(blurred, 0.7)


def motion_blur(images: np.ndarray, randoms: Randoms) -> np.ndarray:
    """Blur with half a Gaussian (sigma 3, truncated at 10 pixels), in a direction of -45 to 45 degrees to the rows."""
    weights = np.exp(-(np.arange(11) ** 2) / (2 * 3**2))
    weights /= weights.sum()
    angles = np.array([random.uniform(-np.pi / 4, np.pi / 4) for random in randoms])
    steps = np.rint(np.arange(11)[:, None, None] * np.stack([np.sin(angles), np.cos(angles)], axis=-1)).astype(int)
    padded = np.pad(images, ((0, 0), (10, 10), (10, 10)), mode="edge")
    rows, columns = np.mgrid[10 : 10 + _EDGE, 10 : 10 + _EDGE]
    every = np.arange(len(images))[:, None, None]
    blurred = np.zeros_like(images)
    for weight, step in zip(weights, steps, strict=True):
        blurred += weight * padded[every, rows + step[:, 0, None, None], columns + step[:, 1, None, None]]
    return blurred


def shear(images: np.ndarray, randoms: Randoms) -> np.ndarray:
    """Shear by 0.4 rad to either side, about the centre."""
    signs = (random.choice((-1, 1)) for random in randoms)
    return _warp(images, [np.array([[1, 0], [sign * np.tan(0.4), 1]]) for sign in signs])


def scale(images: np.ndarray, randoms: Randoms) -> np.ndarray:
    """Scale to 0.7 of the size, about the centre."""
    return _warp(images, [np.eye(2) / 0.7] * len(images))


def rotate(images: np.ndarray, randoms: Randoms) -> np.ndarray:
    """Rotate by 0.4 rad in either direction, about the centre."""
    angles = (0.4 * random.choice((-1, 1)) for random in randoms)
    return _warp(images, [np.array([[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]]) for a in angles])


def brightness(images: np.ndarray, randoms: Randoms) -> np.ndarray:
    """Increase the value channel of HSV by 0.5."""
    hsv = rgb2hsv(np.repeat(images[..., None], 3, axis=-1))
    hsv[..., 2] = np.clip(hsv[..., 2] + 0.5, 0, 1)
    return hsv2rgb(hsv)[..., 0]


def translate(images: np.ndarray, randoms: Randoms) -> np.ndarray:
    """Translate by 3 pixels in either direction along both axes, with black borders."""
    moved = np.zeros_like(images)
    padded = np.pad(images, ((0, 0), (3, 3), (3, 3)))
    for number, random in enumerate(randoms):
        down, right = 3 * random.choice((-1, 1), 2)
        moved[number] = padded[number, 3 - down : 3 - down + _EDGE, 3 - right : 3 - right + _EDGE]
    return moved


def stripe(images: np.ndarray, randoms: Randoms) -> np.ndarray:
    """Invert columns 0-6 and 21-27."""
    striped = images.copy()
    striped[:, :, :7], striped[:, :, 21:] = 1 - images[:, :, :7], 1 - images[:, :, 21:]
    return striped


def fog(images: np.ndarray, randoms: Randoms) -> np.ndarray:
    """Add three times a plasma fractal and scale by max / (max + 3), with the maximum of the image."""
    highest = images.max(axis=(1, 2), keepdims=True)
    plasma = plasma_fractal(randoms, size=32, decay=1.4)[:, :_EDGE, :_EDGE]
    return (images + 3 * plasma) * highest / (highest + 3)


def spatter(images: np.ndarray, randoms: Randoms) -> np.ndarray:
    """Splashes of grey 63/255: smoothed noise N(0.65, 0.3), thresholded at 0.65, smoothed, thresholded at 0.8."""
    drops = _blur(np.stack([random.normal(0.65, 0.3, (_EDGE, _EDGE)) for random in randoms]), 1)
    mud = _blur((drops > 0.65).astype(float), 1.5)
    mud[mud < 0.8] = 0
    return np.clip(images * (1 - mud) + 63 / 255 * mud, 0, 1)


def dotted_line(images: np.ndarray, randoms: Randoms) -> np.ndarray:
    """Draw a line from left (column 0-5) to right (22-27) over the digit, with dashes of 2 pixels every 6 pixels."""
    return np.stack([np.maximum(x, drawn(_dashes(*_ends(r)))) for x, r in zip(images, randoms, strict=True)])


def zigzag(images: np.ndarray, randoms: Randoms) -> np.ndarray:
    """Draw a zigzag line instead, with an amplitude of 2 pixels and a turn every 4 pixels."""
    return np.stack([np.maximum(x, drawn(_zigzag(*_ends(r)))) for x, r in zip(images, randoms, strict=True)])


def canny_edges(images: np.ndarray, randoms: Randoms) -> np.ndarray:
    """Edges of the Canny detector with the defaults of scikit-image: 1 at edges, 0 elsewhere."""
    return np.stack([canny(x) for x in images]).astype(float)


def plasma_fractal(randoms: Randoms, *, size: int, decay: float) -> np.ndarray:
    """Plasma fractal by midpoint displacement on a torus; the displacement is divided by `decay` with each halving.

    Returns
    -------
    ndarray, (N, size, size)
        Scaled from 0 to 1. Centres of squares get the mean of the corners, then centres of diamonds the mean of their
        four neighbours, each plus U(-1, 1) times the displacement, which starts at 100 (the final scaling cancels its
        unit).
    """
    field = np.zeros((len(randoms), size, size))
    step, displacement = size, 100.0
    while step >= 2:
        half, cells = step // 2, size // step

        def displaced(mean: np.ndarray, cells: int = cells, displacement: float = displacement) -> np.ndarray:
            return mean + displacement * np.stack([random.uniform(-1, 1, (cells, cells)) for random in randoms])

        corners = field[:, ::step, ::step]
        right, below = np.roll(corners, -1, 2), np.roll(corners, -1, 1)
        squares = displaced((corners + right + below + np.roll(right, -1, 1)) / 4)
        field[:, half::step, half::step] = squares
        field[:, half::step, ::step] = displaced((corners + below + squares + np.roll(squares, 1, 2)) / 4)
        field[:, ::step, half::step] = displaced((corners + right + squares + np.roll(squares, 1, 1)) / 4)
        step, displacement = half, displacement / decay
    field -= field.min(axis=(1, 2), keepdims=True)
    return field / field.max(axis=(1, 2), keepdims=True)


def drawn(segments: np.ndarray) -> np.ndarray:
    """Draw line segments (S, 2, 2), with ends as (row, column), in the intensity log(1 - d / 2.3) + 1.

    d is the distance of a pixel to the nearest segment; beyond 2.3 (1 - 1/e) = 1.45 pixels, the intensity is 0.
    """
    pixels = np.moveaxis(np.mgrid[:_EDGE, :_EDGE], 0, -1)[:, :, None].astype(float)
    start, along = segments[:, 0], segments[:, 1] - segments[:, 0]
    length = np.maximum((along**2).sum(-1), 1e-12)
    fraction = np.clip(((pixels - start) * along).sum(-1) / length, 0, 1)
    distance = np.sqrt(((pixels - start - fraction[..., None] * along) ** 2).sum(-1)).min(-1)
    return np.clip(np.log(1 - np.minimum(distance, 2.29) / 2.3) + 1, 0, 1)


def _ends(random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    rows = random.uniform(2, _EDGE - 3, 2)
    return np.array([rows[0], random.uniform(0, 5)]), np.array([rows[1], random.uniform(22, 27)])


def _dashes(start: np.ndarray, end: np.ndarray) -> np.ndarray:
    length = np.hypot(*(end - start))
    towards = (end - start) / length
    begins = np.arange(0, length, 6)
    stops = np.minimum(begins + 2, length)
    return start + np.stack([begins, stops], axis=1)[..., None] * towards


def _zigzag(start: np.ndarray, end: np.ndarray) -> np.ndarray:
    length = np.hypot(*(end - start))
    towards = (end - start) / length
    aside = np.array([-towards[1], towards[0]])
    turns = np.arange(2, length - 1, 4)
    swings = 2 * (-1.0) ** np.arange(len(turns))
    points = np.concatenate([[start], start + turns[:, None] * towards + swings[:, None] * aside, [end]])
    return np.stack([points[:-1], points[1:]], axis=1)


def _blur(images: np.ndarray, sigma: float) -> np.ndarray:
    return gaussian_filter(images, (0, sigma, sigma), mode="nearest", truncate=4)


def _warp(images: np.ndarray, matrices: Sequence[np.ndarray]) -> np.ndarray:
    """Resample each image linearly with a matrix about the centre c, with black borders.

    The result at c + p is the original at c + matrix @ p, in (row, column) coordinates.
    """
    centre = np.full(2, _CENTRE)
    maps = [np.column_stack([m, centre - m @ centre]) for m in matrices]
    return np.stack([affine_transform(x, m, order=1) for x, m in zip(images, maps, strict=True)])


CORRUPTIONS: dict[str, Callable[[np.ndarray, Randoms], np.ndarray]] = {
    function.__name__: function
    for function in (
        shot_noise, impulse_noise, glass_blur, motion_blur, shear, scale, rotate, brightness, translate, stripe, fog,
        spatter, dotted_line, zigzag, canny_edges,
    )
}  # fmt: skip
"""Functions by the folder names of MNIST-C."""
