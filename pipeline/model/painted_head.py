"""Lesions painted into a prepared healthy head, mapped by a model, and found or missed.

Each copy of the head is mapped as a whole: what is regressed out of a head and the comparison of a voxel with its
surroundings reach across the brain, so that a part alone would not give the same scores.
"""

import hashlib
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from ...data_manifests.cohort.output_paths import OutputFolder
from ...data_manifests.cohort.subject import SubjectRecord
from ...data_manifests.images.volume import Volume, read_grid
from ...data_manifests.synthetic.painted_copies import HealthyBrain, PaintedCopy, paint_copy, wanted_lesions
from ...evaluation.certificate.painted_heads import PaintedHead, TriedLesion, found_lesions
from ...evaluation.metrics.components import Lesions, find_lesions
from ...evaluation.report.anatomy import place_of
from ...preprocessing.prepared_images import PreparedImages
from ...preprocessing.registration.template import Template, load_template
from ...preprocessing.registration.template_transform import TemplateTransform
from .anomaly_model import AnomalyModel

LESIONS_A_COPY = 8
"""More would leave too little healthy tissue, with which a voxel is compared."""
_SMALLEST_SHRINKAGE, _LARGEST_SHRINKAGE = 0.2, 3.0


@dataclass(frozen=True)
class Trial:
    """What is painted into each head.

    Attributes
    ----------
    lesions : int
    seed : int
    threshold : float
        Of the model.
    """

    lesions: int
    seed: int
    threshold: float


def try_head(model: AnomalyModel, subject: SubjectRecord, out: OutputFolder, trial: Trial) -> PaintedHead:
    """Map a prepared head and its painted copies, and find out which lesions clusters touch."""
    head, template = Mapper.of(model, subject, out), load_template(model.config.preprocessing.spacing_mm)
    smallest = int(np.ceil(model.config.evaluation.smallest_cluster_mm3 / model.mask.grid.voxel_volume_mm3 - 1e-6))
    clusters, _ = head.clusters(head.brain.image, trial.threshold)
    false_clusters = sum(cluster.voxels >= smallest for cluster in clusters.lesions)
    lesions: list[TriedLesion] = []
    for number in range(1, -(-trial.lesions // LESIONS_A_COPY) + 1):
        random, first = random_of(trial.seed, subject.key, number), (number - 1) * LESIONS_A_COPY
        wanted = wanted_lesions(random, first, min(LESIONS_A_COPY, trial.lesions - first))
        copy = paint_copy(head.brain, wanted, random)
        lesions += _tried(head, copy, number, smallest, trial, template)
    return PaintedHead(
        key=subject.key,
        participant=subject.subject_id,
        false_clusters=false_clusters,
        lesions=tuple(lesions),
        left_out=trial.lesions - len(lesions),
    )


def random_of(seed: int, key: str, copy: int) -> np.random.Generator:
    """Return the random numbers of one copy of one head, whatever other heads there are."""
    of_key = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8])
    return np.random.default_rng([seed % 2**63, of_key, copy])


def _tried(
    head: "Mapper", copy: PaintedCopy, number: int, smallest: int, trial: Trial, template: Template
) -> list[TriedLesion]:
    clusters, z = head.clusters(copy.image, trial.threshold)
    found = found_lesions(clusters, smallest, copy.labels, len(copy.lesions))
    numbers = [lesion.number for lesion in copy.lesions]
    highest = ndimage.maximum(z, copy.labels, numbers) if numbers else []
    tried = []
    for lesion, is_found, score in zip(copy.lesions, found, highest, strict=True):
        place = place_of(np.array(lesion.place_mm), template.grey, template.white)
        x, y, z_mm = lesion.place_mm
        tried.append(
            TriedLesion(
                copy_number=number,
                kind=lesion.kind,
                ml=lesion.ml,
                strength=lesion.strength,
                x_mm=round(x, 1),
                y_mm=round(y, 1),
                z_mm=round(z_mm, 1),
                lobe=place.lobe or "elsewhere",
                tissue=lesion.tissue,
                found=bool(is_found),
                highest_score=round(float(score), 3),
            )
        )
    return tried


@dataclass(frozen=True, eq=False)
class Mapper:
    """A prepared head that is mapped again with other images in place of its T1w.

    Attributes
    ----------
    model : AnomalyModel
    subject : SubjectRecord
    brain : HealthyBrain
    images : tuple of Volume
        Prepared images, one per modality; the T1w is replaced.
    """

    model: AnomalyModel
    subject: SubjectRecord
    brain: HealthyBrain
    images: tuple[Volume, ...]

    @classmethod
    def of(cls, model: AnomalyModel, subject: SubjectRecord, out: OutputFolder) -> "Mapper":
        """Read a head that was prepared into an output folder.

        Raises
        ------
        UserError
            A prepared file is missing or damaged.
        """
        grid, modalities = model.mask.grid, model.source.channels.modalities
        prepared = PreparedImages.from_record(subject, out, modalities)
        images = tuple(prepared.read(modality, grid) for modality in modalities)
        brain_mask = prepared.read_brain_mask(grid)
        transform = TemplateTransform.load(out.transform_folder(subject))
        scored = brain_mask.voxels & model.mask.brain_mask
        scan_mm = float(np.cbrt(read_grid(out.native_brain_mask(subject)).voxel_volume_mm3))
        t1w = images[modalities.index("t1w")]
        brain = HealthyBrain(t1w, brain_mask, scored, shrinkage_of(transform, brain_mask), scan_mm)
        return cls(model, subject, brain, images)

    def clusters(self, t1w: Volume, threshold: float) -> tuple[Lesions, np.ndarray]:
        """Map the head with this T1w: components at or above the threshold, and z (X, Y, Z), -inf without a score."""
        channels, mask = self.model.source.channels, self.model.mask
        replaced = [t1w if image is self.brain.image else image for image in self.images]
        standard = [
            channels.scale.standardise(image, self.brain.brain_mask, modality).voxels
            for modality, image in zip(channels.modalities, replaced, strict=True)
        ]
        every = channels.with_derived(standard, self.brain.brain_mask)
        found = self.model.ensemble.predict(every, mask.transform(self.brain.brain_mask.voxels), self.subject, jobs=1)
        z = np.where(mask.inverse_transform(found.inside), mask.inverse_transform(found.z), -np.inf).astype(np.float32)
        return find_lesions(Volume(z >= np.float32(threshold), mask.grid)), z


def shrinkage_of(transform: TemplateTransform, on: Volume) -> np.ndarray:
    """Return the volume in the head to that on the template, at each voxel of a template grid: (X, Y, Z)."""
    of_affine, warped = abs(float(np.linalg.det(transform.affine[:3, :3]))), transform.jacobian()
    if warped is None:
        return np.full(on.voxels.shape, of_affine)
    to_warp = np.linalg.inv(warped.affine) @ on.affine
    shape = on.voxels.shape
    local = ndimage.affine_transform(warped.voxels, to_warp, output_shape=shape, order=1, mode="nearest")
    return np.clip(of_affine * local, _SMALLEST_SHRINKAGE, _LARGEST_SHRINKAGE)
