"""The anomaly map of one scan: volumes, threshold, clusters, and how they are saved."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ...data_manifests.cohort.output_paths import OutputFolder, beside
from ...data_manifests.cohort.subject import SubjectRecord, parts_of_key
from ...data_manifests.errors import UserError, private
from ...data_manifests.images.volume import Volume
from ...data_manifests.user_paths import given_path
from ...evaluation.metrics.cluster_parts import label_findings
from ...evaluation.metrics.clusters import Cluster
from ...evaluation.scoring.operating_point import StoredPoint
from ...preprocessing.registration.template_transform import TemplateTransform
from ..config.config import Config
from ..workflow.origin import Origin
from .map_files import MapContext, write_clusters, write_map

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False)
class AnomalyMap:
    """The anomaly map of one scan, returned by `AnomalyModel.predict`.

    Attributes
    ----------
    key : str
        BIDS name of the subject: ``sub-`` and its `subject_id`, with ``_ses-`` and its session if there is one.
    z_map : Volume
        On the grid of the T1w. Standard deviations of a normal distribution, higher = more anomalous: a healthy voxel
        exceeds 3.09 once in a thousand. 0 where there is no score.
    coverage : Volume of bool
        The voxels with a score.
    template_z_map, template_coverage : Volume
        The same on the template grid (MNI152NLin2009aSym).
    ensemble_sd : Volume or None
        Standard deviation over the encoders of an ensemble, on the grid of the T1w (saved as
        ``desc-spread_zmap``); None for one encoder.
    threshold : float or None
        The model's `AnomalyModel.threshold`; None if it has none.
    warnings : tuple of str
        From the preparation of the scan and from the covariates.
    latent_distance : float or None
        Distance of the latents of the whole brain from those of the controls: the median of their -log10 p. Some 0.3
        for a brain like the controls, more with another scanner or sequence. None for a model without an encoder.
    """

    key: str
    z_map: Volume
    coverage: Volume
    template_z_map: Volume
    template_coverage: Volume
    ensemble_sd: Volume | None
    threshold: float | None
    warnings: tuple[str, ...]
    _config: Config
    _operating_point: StoredPoint | None
    _why_no_threshold: str
    _transform: TemplateTransform
    _model: str = ""
    _adapted_on: int | None = None
    _labelled_patients: int | None = None
    _template_brain: Volume | None = None
    _scans: Mapping[str, str] = field(default_factory=dict)
    latent_distance: float | None = None

    def __repr__(self) -> str:
        threshold = "None" if self.threshold is None else f"{self.threshold:.2f}"
        return f"AnomalyMap(key={self.key!r}, shape={self.z_map.voxels.shape}, threshold={threshold})"

    @cached_property
    def clusters(self) -> "pd.DataFrame":
        """Clusters at or above the threshold, highest peak first: DataFrame, one row per cluster or part of one.

        A cluster with several distinct peaks is split at them: column `part_of` holds the ranks of all its parts, and
        `p_value` and `cluster_mm3` are those of the whole cluster.

        The columns are those of the cluster tables of a run: volume in mm3, peak and mean score, p-value (share of
        the model's controls and this brain with a cluster at least as large; the smallest possible is 1 / (1 + number
        of controls)), the peak in MNI space in mm, side, region, tissue and lobe at the peak, and the share of the
        cluster in each region.

        Raises
        ------
        UserError
            The model has no threshold.
        """
        import pandas as pd

        from ...evaluation.report.cluster_table import COLUMNS

        return pd.DataFrame(self._rows, columns=list(COLUMNS)).drop(columns=["subject", "in_lesion_mask"])

    @cached_property
    def _rows(self) -> list[dict[str, object]]:
        from ...evaluation.report.anatomy import places_of
        from ...evaluation.report.cluster_table import cluster_row
        from ...evaluation.report.flags import OnTemplate, flags_of
        from ...preprocessing.registration.template import load_template

        config = self._config
        template = load_template(config.preprocessing.spacing_mm)
        found, _ = self._found
        native = config.evaluation.space == "native"
        to_template = self._transform.points_to_template if native else lambda points: points
        brain = self._template_brain if self._template_brain is not None else self.template_coverage
        on_template = OnTemplate(
            self.template_z_map,
            self.template_coverage,
            brain,
            template.grey,
            template.white,
            self._transform.jacobian(),
        )
        assert self.threshold is not None  # otherwise nothing could be found
        flags = partial(flags_of, on_template=on_template, threshold=self.threshold)
        places = places_of(found, to_template, template.grey, template.white, flags)
        in_scan = [cluster.peak_mm if native else peak for cluster, (peak, _) in zip(found, places, strict=True)]
        if not native:
            in_scan = [_triple(point) for point in self._transform.points_to_native(np.array(in_scan).reshape(-1, 3))]
        return [
            cluster_row(self.key, cluster, peak, place, native_mm)
            for cluster, (peak, place), native_mm in zip(found, places, in_scan, strict=True)
        ]

    @cached_property
    def _found(self) -> tuple[tuple[Cluster, ...], Volume]:
        if self.threshold is None or self._operating_point is None:
            raise UserError(
                f"{self.key}: the model has no threshold ({self._why_no_threshold}), expected one. Score the "
                "model's own cohort (`voxout run`), or threshold the map yourself."
            )
        evaluation = self._config.evaluation
        native = evaluation.space == "native"
        return label_findings(
            self.z_map if native else self.template_z_map,
            self.threshold,
            self.coverage if native else self.template_coverage,
            smallest_mm3=evaluation.smallest_cluster_mm3,
            largest_healthy_mm3=self._operating_point.largest_mm3,
        )

    def volumes(self, out: OutputFolder, subject: SubjectRecord) -> dict[Path, Volume]:
        """Return the maps by their paths in the output folder of a run."""
        volumes = {
            out.native_map(subject): self.z_map,
            out.native_coverage(subject): self.coverage,
            out.template_map(subject): self.template_z_map,
            out.template_coverage(subject): self.template_coverage,
        }
        if self.ensemble_sd is not None:
            volumes[out.spread_map(subject)] = self.ensemble_sd
        return volumes

    def save(self, folder: str | Path) -> list[Path]:
        """Write the maps as NIfTI files, each with a JSON file that says what it holds.

        If the model has a threshold, the clusters are written as well: numbered, as an image with a table
        (``<key>_..._desc-clusters_dseg``), and as ``<key>_clusters.csv``.

        Parameters
        ----------
        folder : str or Path
            Made if it does not exist.

        Returns
        -------
        list of Path

        Raises
        ------
        UserError
            One of the files exists already.
        """
        folder = given_path(folder, "folder")
        subject, session = parts_of_key(self.key)
        record = SubjectRecord(subject, "patient", {}, session_id=session)
        names = OutputFolder(Path())
        volumes = {path.name: volume for path, volume in self.volumes(names, record).items()}
        labels = folder / names.cluster_labels(record, self._config.evaluation.space).name
        table = folder / f"{self.key}_clusters.csv"
        images = [Path(name) for name in (*volumes, labels.name)]
        all_names = [*map(str, images), *(beside(image, ".json").name for image in images)]
        all_names += [beside(labels, ".tsv").name, table.name]
        if there := [name for name in all_names if os.path.lexists(folder / name)]:
            raise UserError(
                f"{private(folder, 'the output folder')}: holds {there[0]}, expected a folder without maps of "
                f"{self.key}. Choose another folder."
            )
        folder.mkdir(parents=True, exist_ok=True)
        context = replace(
            MapContext.of_model(self._config, self._model, self.threshold, self._adapted_on, self._labelled_patients),
            made_by=Origin.of("AnomalyModel.predict", self._config),
            scans=self._scans,
            latent_distance=self.latent_distance,
        )
        written = [path for name, volume in volumes.items() for path in write_map(folder / name, volume, context)]
        if self.threshold is not None:
            clusters, numbered = self._found
            written += write_clusters(labels, numbered, clusters, self._rows, context)
            self.clusters.to_csv(table, index=False)
            written.append(table)
        return written


def _triple(point: np.ndarray) -> tuple[float, float, float]:
    x, y, z = (float(mm) for mm in point)
    return x, y, z
