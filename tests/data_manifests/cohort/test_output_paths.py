"""Tests of output paths."""

from pathlib import Path

import pytest
from voxout.data_manifests.cohort.output_paths import OutputFolder
from voxout.data_manifests.cohort.subject import SubjectRecord

OUT = OutputFolder(Path("/out"))
ONE = SubjectRecord("01", "control", {"t1w": Path("/a.nii")})
TWO = SubjectRecord("01", "control", {"t1w": Path("/b.nii")}, session_id="2")


def test_names_are_bids_derivatives():
    anat = Path("/out/prepared/sub-01/anat")
    assert OUT.prepared_image(ONE, "t1w") == anat / "sub-01_space-MNI152NLin2009aSym_desc-preproc_T1w.nii.gz"
    assert OUT.prepared_image(ONE, "flair") == anat / "sub-01_space-MNI152NLin2009aSym_desc-preproc_FLAIR.nii.gz"
    assert OUT.prepared_brain_mask(ONE) == anat / "sub-01_space-MNI152NLin2009aSym_desc-brain_mask.nii.gz"
    assert OUT.prepared_lesion_mask(ONE) == anat / "sub-01_space-MNI152NLin2009aSym_label-lesion_mask.nii.gz"
    assert OUT.native_brain_mask(ONE) == anat / "sub-01_space-orig_desc-brain_mask.nii.gz"
    assert OUT.native_map(TWO) == Path("/out/maps/sub-01/ses-2/anat/sub-01_ses-2_space-orig_desc-anomaly_zmap.nii.gz")
    anat = Path("/out/maps/sub-01/anat")
    assert OUT.p_maps(OUT.native_map(ONE)) == (
        anat / "sub-01_space-orig_desc-anomaly_logpmap.nii.gz",
        anat / "sub-01_space-orig_desc-anomaly_logqmap.nii.gz",
    )


def _subject_paths(subject: SubjectRecord) -> set[Path]:
    paths = set()
    for name in sorted(vars(OutputFolder)):
        method = getattr(OUT, name)
        if name.startswith("_") or not callable(method) or name in ("record", "prepared_image"):
            continue
        try:
            paths.add(method(subject))
        except (TypeError, AttributeError):
            continue  # takes another argument than a subject
    return paths | {OUT.prepared_image(subject, "t1w"), OUT.prepared_image(subject, "flair")}


def test_paths_are_unique_across_outputs_and_sessions():
    one, two = _subject_paths(ONE), _subject_paths(TWO)
    assert len(one) == len(two) >= 10
    assert not one & two


@pytest.mark.parametrize("subject", [ONE, TWO])
def test_all_paths_are_below_the_root(subject):
    assert all(path.is_relative_to("/out") for path in _subject_paths(subject))
