"""Files of a certificate: ``certificate.json`` and its tables, described in docs/certificate.md."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from ...data_manifests.atomic_write import atomic_write
from ...data_manifests.csv_file import write_csv
from ...data_manifests.synthetic.lesion_kinds import KINDS
from ..metrics.bootstrap import Estimate, percentile_interval
from .certificate import Certificate
from .painted_heads import TriedLesion

_CURVE_POINTS = 13
_OF_ESTIMATE = ("value", "ci_low", "ci_high")


def write_json_file(path: Path, certificate: Certificate) -> Path:
    """Write the numbers of a certificate as JSON, atomically."""
    content = {
        "about": asdict(certificate.about)
        | {
            "heads": len(certificate.heads),
            "participants": certificate.n_participants,
            "lesions": len(certificate.lesions),
            "seed": certificate.seed,
            "bootstrap_draws": certificate.draws,
        },
        "sentence": certificate.sentence,
        "false_clusters_per_healthy_brain": _estimate(certificate.false_clusters),
        "curves": {kind: curve.coefficients[0].tolist() for kind, curve in certificate.curves.items()},
        "limits": [
            {"kind": limit.kind, "strength": limit.strength, "share": limit.share} | _estimate(limit.size_ml)
            for limit in certificate.limits
        ],
        "regions": [
            {name: getattr(region, name) for name in ("by", "name", "lesions", "found", "foretold")}
            | {"limit_ml": _estimate(region.limit.size_ml)}
            for region in certificate.regions
        ],
        "agreement": [asdict(cell) | {"agrees": cell.agrees} for cell in certificate.cells],
    }
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(_finite(content), indent=1, allow_nan=False) + "\n", encoding="utf-8")
    return path


def write_tables(folder: Path, certificate: Certificate) -> list[Path]:
    """Write ``limits.csv``, ``curves.csv``, ``regions.csv``, ``agreement.csv``, ``lesions.csv`` and ``heads.csv``."""
    folder.mkdir(parents=True, exist_ok=True)
    tables: dict[str, tuple[tuple[str, ...], list[list[object]]]] = {
        "limits": (
            ("kind", "strength", "strength_is", "share_found", "size_ml", "ci_low", "ci_high"),
            [
                [limit.kind, limit.strength, KINDS[limit.kind].strength, limit.share, *_numbers(limit.size_ml)]
                for limit in certificate.limits
            ],
        ),
        "curves": (("kind", "strength", "size_ml", "probability", "ci_low", "ci_high"), _curve_rows(certificate)),
        "regions": (
            ("by", "region", "lesions", "found", "foretold", "limit_ml", "ci_low", "ci_high"),
            [
                [r.by, r.name, r.lesions, round(r.found, 4), round(r.foretold, 4), *_numbers(r.limit.size_ml)]
                for r in certificate.regions
            ],
        ),
        "agreement": (
            ("kind", "from_ml", "to_ml", "lesions", "foretold", "observed", "standard_error"),
            [
                [cell.kind, cell.smallest_ml, cell.largest_ml, cell.lesions]
                + [round(value, 4) for value in (cell.foretold, cell.observed, cell.standard_error)]
                for cell in certificate.cells
            ],
        ),
        "lesions": (
            ("subject", *TriedLesion.model_fields),
            [[head.key, *lesion.model_dump().values()] for head in certificate.heads for lesion in head.lesions],
        ),
        "heads": (
            ("subject", "false_clusters", "lesions", "found", "left_out"),
            [
                [head.key, head.false_clusters, len(head.lesions), sum(le.found for le in head.lesions), head.left_out]
                for head in certificate.heads
            ],
        ),
    }
    for name, (header, rows) in tables.items():
        write_csv(folder / f"{name}.csv", header, rows)
    return [folder / f"{name}.csv" for name in tables]


def _curve_rows(certificate: Certificate) -> list[list[object]]:
    rows: list[list[object]] = []
    for name, curve in certificate.curves.items():
        kind = KINDS[name]
        sizes = np.geomspace(curve.smallest_ml, curve.largest_ml, _CURVE_POINTS)
        for strength in np.geomspace(kind.weakest, kind.strongest, 5):
            drawn = curve.probability(sizes, np.full(len(sizes), strength))
            for size, values in zip(sizes, drawn.T, strict=True):
                enough = certificate.n_participants >= 3
                low, high = percentile_interval(values[1:]) if enough else (None, None)
                rows.append([name, *(_short(v) for v in (strength, size, float(values[0]), low, high))])
    return rows


def _numbers(estimate: Estimate) -> list[float | None]:
    return [_short(getattr(estimate, name)) for name in _OF_ESTIMATE]


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")


def _estimate(estimate: Estimate) -> dict[str, float | None]:
    return {name: getattr(estimate, name) for name in _OF_ESTIMATE}


def _finite(value: Any) -> Any:
    """Replace numbers that JSON has no word for by null."""
    if isinstance(value, dict):
        return {name: _finite(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value
