"""A small model fitted to real preparations of phantoms, and the head of a patient."""

from pathlib import Path

import pytest
from voxout.data_manifests.images.volume import Volume, read_volume
from voxout.data_manifests.synthetic.phantoms import small_cohort

from ..commands import told

SETTINGS = {
    "preprocessing.spacing_mm": 4.0,
    "preprocessing.registration.transform": "affine",
    "preprocessing.registration.working_spacing_mm": 4.0,
    "preprocessing.registration.smallest_similarity": 0.2,
    "preprocessing.bias_field.working_spacing_mm": 16.0,
    "models.ensemble.scorers": "[patches, extension]",
    "data_manifests.held_out_share": 0,
    "evaluation.bootstrap_draws": 50,
    "evaluation.false_clusters": 8,
    "evaluation.smallest_cluster_mm3": 0,
}


@pytest.fixture(scope="session")
def cohort(tmp_path_factory) -> Path:
    """Four controls and a patient."""
    return small_cohort(tmp_path_factory.mktemp("cohort") / "bids", controls=4, patients=1, seed=5)


@pytest.fixture(scope="session")
def model(cohort, tmp_path_factory, warm_workers) -> Path:
    """The output folder of the run that fitted it."""
    out = tmp_path_factory.mktemp("model") / "out"
    given = [part for name, value in SETTINGS.items() for part in ("--set", f"{name}={value}")]
    code, messages = told("run", cohort, out, *given, "--device", "cpu")
    assert code == 0, messages
    return out


@pytest.fixture(scope="session")
def head(cohort) -> Volume:
    """The patient's T1w."""
    (path,) = cohort.parent.glob("sub-patient001/anat/*_T1w.nii.gz")
    return read_volume(path)
