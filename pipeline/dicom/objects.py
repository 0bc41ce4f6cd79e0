"""Findings and scores as DICOM objects on the grid of the original series: Segmentation and Parametric Map."""

from importlib import metadata
from typing import Any

import highdicom
import numpy as np
from highdicom.pm import ParametricMap, RealWorldValueMapping
from highdicom.seg import Segmentation, SegmentDescription
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.uid import generate_uid

from ...evaluation.report.cluster_table import where
from .results import Results

RESEARCH_USE = "Research use only: not a medical device"
MOST_SEGMENTS = 10
"""Segments of the binary segmentation, which has all frames for each; further findings share one more."""
_ABNORMAL = Code("49755003", "SCT", "Morphologically Abnormal Structure")
_ANOMALY = Code("ANOMALY", "99VOXOUT", "Anomaly relative to healthy brains")
_Z_SCORE = Code("ZSCORE", "99VOXOUT", "z-score relative to healthy brains")
_BRAIN = Code("12738006", "SCT", "Brain")
_SERIES = {"slices": 1, "overview": 2, "findings": 3, "findings-binary": 4, "z-scores": 5, "report": 6}
"""Series by the name of what they hold; the number is added to `_FIRST_NUMBER`."""
_FIRST_NUMBER = 9000


def new_uid() -> str:
    """Return a new UID of the form 2.25, which anybody may make."""
    return str(generate_uid(prefix=None))


def equipment(name: str, instance: int = 1) -> dict[str, Any]:
    """Return what all objects say of their series, as arguments of highdicom."""
    version = metadata.version("voxout")
    return {
        "series_number": _FIRST_NUMBER + _SERIES[name],
        "sop_instance_uid": new_uid(),
        "instance_number": instance,
        "manufacturer": "voxout",
        "manufacturer_model_name": "voxout",
        "software_versions": version,
        "device_serial_number": "none",
        "series_description": series_description(name),
        "specific_character_set": "ISO_IR 192",
    }


def series_description(name: str) -> str:
    """Return the name of a series as archives list it."""
    return f"voxout {name} (research use only)"


def completed(dataset: Any) -> Any:
    """Add what all objects of a brain have, and write its names in Unicode."""
    dataset.BodyPartExamined = "BRAIN"
    dataset.SpecificCharacterSet = "ISO_IR 192"
    for name in ("PatientName", "ReferringPhysicianName"):
        if name in dataset:
            # Decoded, since the original may have another character set.
            setattr(dataset, name, str(dataset.data_element(name).value or ""))
    return dataset


def segmentations(results: Results) -> dict[str, Segmentation]:
    """Return the findings as a labelmap, with their numbers, and as binary segments; nothing without findings."""
    if not results.labels.any():
        return {}
    few = np.minimum(results.labels, MOST_SEGMENTS + 1)
    names = [f"Finding {row['rank']}: {where(row)}"[:64] for row in results.rows]
    fewer = names[:MOST_SEGMENTS]
    if len(names) > MOST_SEGMENTS:
        fewer.append(f"Findings {MOST_SEGMENTS + 1} to {len(names)}")
    return {
        "findings": _segmentation(results, "findings", "LABELMAP", results.labels, names),
        "findings-binary": _segmentation(results, "findings-binary", "BINARY", few, fewer),
    }


def _segmentation(results: Results, name: str, kind: str, labels: np.ndarray, names: list[str]) -> Segmentation:
    program = highdicom.AlgorithmIdentificationSequence(
        name="voxout", family=codes.DCM.ArtificialIntelligence, version=metadata.version("voxout")
    )
    # A finding resampled from the template may have lost its last voxel.
    present = sorted(set(np.unique(labels).tolist()) - {0})
    order = np.zeros(int(labels.max()) + 1, np.uint16)
    order[present] = np.arange(1, len(present) + 1)
    segments = [
        SegmentDescription(
            number,
            names[label - 1],
            _ABNORMAL,
            _ANOMALY,
            "AUTOMATIC",
            program,
            tracking_uid=new_uid(),
            tracking_id=f"{results.key} {names[label - 1]}"[:64],
            anatomic_regions=[_BRAIN],
        )
        for number, label in enumerate(present, start=1)
    ]
    return completed(
        Segmentation(
            results.source.datasets,
            results.volume.with_array(order[labels]),
            kind,
            segments,
            series_instance_uid=new_uid(),
            # Some viewers shift overlays whose empty frames are left out.
            omit_empty_frames=False,
            content_label="FINDINGS",
            content_description=f"Above z = {results.threshold:.2f}. {RESEARCH_USE}"[:64],
            **equipment(name),
        )
    )


def parametric_map(results: Results) -> ParametricMap:
    """Return the z-scores as float32."""
    window = highdicom.VOILUTTransformation(
        window_center=1.5 * results.threshold, window_width=max(abs(results.threshold), 1e-3)
    )
    span = float(np.abs(results.map).max()) or 1.0
    return completed(
        ParametricMap(
            results.source.datasets,
            results.volume.with_array(results.map),
            series_instance_uid=new_uid(),
            contains_recognizable_visual_features=False,
            real_world_value_mappings=[
                RealWorldValueMapping(
                    "ZSCORE",
                    "z-score; 0 without a score",
                    codes.UCUM.NoUnits,
                    value_range=(-span, span),
                    slope=1.0,
                    intercept=0.0,
                    quantity_definition=_Z_SCORE,
                )
            ],
            voi_lut_transformations=[window],
            content_label="ZSCORE",
            content_description=RESEARCH_USE,
            **equipment("z-scores"),
        )
    )
