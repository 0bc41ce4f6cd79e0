"""Colours can be distinguished with any colour vision."""

import re
from pathlib import Path

import numpy as np
import pytest
import voxout.evaluation.report.html as page
from skimage.color import rgb2lab
from voxout.evaluation.figures.colour_scale import LESION_COLOUR, ColourScale, colour_bar, colours_of

# Machado, Oliveira, Fernandes (2009), complete dichromacy, for linear RGB.
VISION = {
    "usual": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]],
}


def simulate_vision(rgb, matrix):
    rgb = np.asarray(rgb, dtype=float)
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    linear = np.clip(linear @ np.asarray(matrix).T, 0, 1)
    return np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055)


@pytest.mark.parametrize("vision", VISION)
def test_lightness_increases_and_the_lesion_outline_is_distinct(vision):
    ramp = rgb2lab(simulate_vision(colours_of(np.linspace(0, 1, 33)), VISION[vision])[None])[0]
    assert (np.diff(ramp[:, 0]) > 0).all()
    rim = rgb2lab(simulate_vision(np.array(LESION_COLOUR)[None], VISION[vision])[None])[0, 0]
    assert np.linalg.norm(ramp - rim, axis=1).min() > 20


def test_shares_are_bounded():
    scale = ColourScale(1.0, 3.0)
    np.testing.assert_allclose(scale.share(np.array([-np.inf, 1.0, 2.0, 9.0])), [0, 0, 0.5, 1])


def test_text_has_sufficient_contrast_in_both_themes():
    css = (Path(page.__file__).parent / "templates" / "report.css").read_text()

    def luminance(colour):
        rgb = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
        return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722]

    blocks = re.findall(r"\{([^{}]*--ink:[^{}]*)\}", css)
    themes = [dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", block)) for block in blocks]
    assert len(themes) == 4
    pairs = [(word, ground) for word in ("ink", "muted", "accent") for ground in ("ground", "panel")]
    pairs += [(verdict, f"{verdict}-ground") for verdict in ("ok", "warn", "bad")]
    for theme in themes[:3]:  # the fourth is for printing
        for word, ground in pairs:
            light, dark = sorted([luminance(theme[word]), luminance(theme[ground])], reverse=True)
            assert (light + 0.05) / (dark + 0.05) >= 4.5, (word, ground, theme)


@pytest.mark.parametrize("threshold", [3.59, 0.2, 0.0, -1.5])
def test_only_scores_from_the_threshold_on_are_coloured(threshold):
    scale = ColourScale.at(threshold)
    assert scale.floor < scale.low == threshold < scale.high
    grey = np.full((1, 3), 0.4)
    below, at, high = scale.paint(grey, np.array([[np.nextafter(threshold, -9), threshold, scale.high]]))[0]
    np.testing.assert_array_equal(below, 0.4)
    assert np.abs(at - 0.4).max() > 0.15 and at[0] > at[1], "violet"
    assert high[0] > 0.9 and high[0] > high[2] + 0.2, "yellow"


def test_the_colour_bar_covers_the_complete_scale():
    bar = colour_bar(ColourScale.at(3.0)) / 255
    assert bar[0, 0].max() < 0.5 < bar[0, -1].max() and (bar == bar[:1]).all()
