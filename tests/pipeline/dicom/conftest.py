"""A small model fitted to real preparations of phantoms, and the head of a patient."""

from pathlib import Path

import pytest
from voxout.data_manifests.images.volume import Volume, read_volume
from voxout.data_manifests.synthetic.phantoms import small_cohort

from ..commands import told
from ..small_run import ALL_CONTROLS_FIT, SETTINGS, as_arguments

CLUSTERS = {"evaluation.false_clusters": 8, "evaluation.smallest_cluster_mm3": 0}


@pytest.fixture(scope="session")
def cohort(tmp_path_factory) -> Path:
    """Four controls and a patient."""
    return small_cohort(tmp_path_factory.mktemp("cohort") / "bids", controls=4, patients=1, seed=5)


@pytest.fixture(scope="session")
def model(cohort, tmp_path_factory, warm_workers) -> Path:
    """The output folder of the run that fitted it."""
    out = tmp_path_factory.mktemp("model") / "out"
    given = as_arguments(SETTINGS | ALL_CONTROLS_FIT | CLUSTERS)
    code, messages = told("run", cohort, out, *given, "--device", "cpu")
    assert code == 0, messages
    return out


@pytest.fixture(scope="session")
def head(cohort) -> Volume:
    """The patient's T1w."""
    (path,) = cohort.parent.glob("sub-patient001/anat/*_T1w.nii.gz")
    return read_volume(path)
