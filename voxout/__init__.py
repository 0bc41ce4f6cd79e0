"""Voxel-wise outlier maps: unsupervised anomaly detection in brain MRI.

A model of normal anatomy is fitted to the healthy scans of a lab; it turns a patient's scan into a map of what does not
fit.

>>> import voxout                                                                         # doctest: +SKIP
>>> model = voxout.fit("cohort.csv", out="out", preset="fast")                            # doctest: +SKIP
>>> result = model.predict("patient_T1w.nii.gz")                                          # doctest: +SKIP
>>> result.save("patient-map")                                                            # doctest: +SKIP

Everything is imported when it is first used, so that ``import voxout`` is quick.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from . import metrics as metrics
    from . import ocsvm as ocsvm
    from .data_manifests.cohort.subject import Manifest as Manifest
    from .data_manifests.cohort.subject import SubjectRecord as SubjectRecord
    from .data_manifests.errors import UserError as UserError
    from .data_manifests.images.volume import Volume as Volume
    from .data_manifests.images.volume import read_volume as read_volume
    from .evaluation.scoring.compare import Comparison as Comparison
    from .evaluation.scoring.score_cohort import CohortScores as CohortScores
    from .models.encoder.dense_inference import encode_densely as encode_densely
    from .models.encoder.network import PatchEncoder as PatchEncoder
    from .pipeline.api import adapt as adapt
    from .pipeline.api import adapt_scanner as adapt_scanner
    from .pipeline.api import fit as fit
    from .pipeline.api import load_model as load_model
    from .pipeline.api import read_cohort as read_cohort
    from .pipeline.api_of_scores import compare as compare
    from .pipeline.api_of_scores import evaluate as evaluate
    from .pipeline.model.anomaly_map import AnomalyMap as AnomalyMap
    from .pipeline.model.anomaly_model import AnomalyModel as AnomalyModel

_HOME = {
    "AnomalyMap": "pipeline.model.anomaly_map",
    "AnomalyModel": "pipeline.model.anomaly_model",
    "CohortScores": "evaluation.scoring.score_cohort",
    "Comparison": "evaluation.scoring.compare",
    "Manifest": "data_manifests.cohort.subject",
    "PatchEncoder": "models.encoder.network",
    "SubjectRecord": "data_manifests.cohort.subject",
    "UserError": "data_manifests.errors",
    "Volume": "data_manifests.images.volume",
    "adapt": "pipeline.api",
    "adapt_scanner": "pipeline.api",
    "compare": "pipeline.api_of_scores",
    "encode_densely": "models.encoder.dense_inference",
    "evaluate": "pipeline.api_of_scores",
    "fit": "pipeline.api",
    "load_model": "pipeline.api",
    "read_cohort": "pipeline.api",
    "read_volume": "data_manifests.images.volume",
}
_MODULES = ("metrics", "ocsvm")
__all__ = [
    "AnomalyMap",
    "AnomalyModel",
    "CohortScores",
    "Comparison",
    "Manifest",
    "PatchEncoder",
    "SubjectRecord",
    "UserError",
    "Volume",
    "adapt",
    "adapt_scanner",
    "compare",
    "encode_densely",
    "evaluate",
    "fit",
    "load_model",
    "metrics",
    "ocsvm",
    "read_cohort",
    "read_volume",
]


def __getattr__(name: str) -> object:
    if name == "__version__":
        from importlib.metadata import version

        return version("voxout")
    if name in _MODULES:
        return import_module(f".{name}", __name__)
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
