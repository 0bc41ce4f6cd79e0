"""Check of the detection limits: curves of `voxout certify` against lesions that they have not seen, in other heads.

    python benchmarks/method_cohort.py --data ../shared/data --out COHORT
    voxout run COHORT/cohort.csv RUN && voxout certify RUN
    python benchmarks/certificate.py --run RUN --cohort COHORT/cohort.csv [--before 2]

Tables:

1. Other heads, same painter: each held-out control's lesions against the curves of the other controls.
2. Other heads, other painter: lesions in the painted scans of `method_cohort` (shapes of real lesions, painted before
   preparation, found in native space) against the curves of the certificate.
3. With ``--before N``: lesions of N held-out controls painted before preparation instead of after, pair by pair.
4. With ``--alone N``: lesions of N copies of a held-out control, each alone instead of with the others of its copy.
"""

import argparse
import ast
import csv
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
from method_cohort import kinds_file
from painted_cohort import SOFTNESS_MM
from scipy import ndimage
from scipy.optimize import linear_sum_assignment
from voxout.data_manifests.cohort.manifest import read_manifest
from voxout.data_manifests.cohort.output_paths import OutputFolder
from voxout.data_manifests.cohort.subject import Manifest, SubjectRecord
from voxout.data_manifests.images.volume import Volume, read_mask, read_volume, write_volume
from voxout.data_manifests.synthetic.lesion_effects import Blur, Effect, Shift, Swelling, Texture
from voxout.data_manifests.synthetic.lesion_kinds import KINDS
from voxout.data_manifests.synthetic.painted_copies import paint_copy, wanted_lesions
from voxout.data_manifests.synthetic.painted_lesions import paint_lesion, white_grey_contrast
from voxout.evaluation.certificate.agreement import FEWEST, WITHIN
from voxout.evaluation.certificate.blind_spots import REACH_MM
from voxout.evaluation.certificate.certificate import Certificate
from voxout.evaluation.certificate.detection_curve import design, expit, shifts
from voxout.evaluation.certificate.painted_heads import PaintedHead, found_lesions
from voxout.evaluation.metrics.components import find_lesions
from voxout.pipeline.config.config import read_settings
from voxout.pipeline.model.anomaly_model import AnomalyModel
from voxout.pipeline.model.painted_head import LESIONS_A_COPY, Mapper, random_of
from voxout.pipeline.stages.certify import certificate_of, held_out_controls
from voxout.preprocessing.registration.template_transform import TemplateTransform

SAME_KIND = {"dark": "dark", "bright": "bright", "blur": "blurred", "texture": "texture", "swelling": "swollen"}
"""Kind of the certificate by kind of `method_cohort`."""
_FACTORS: Mapping[str, tuple[float, ...]] = {"dark": (0.5, 1.0, 1.5), "bright": (0.35, 0.7), "texture": (0.35, 0.5)}
"""Strengths of `method_cohort`, in shares of the grey-white contrast."""
BANDS_ML = (0.03, 0.3, 1.0, 10.0)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--cohort", type=Path, required=True)
    parser.add_argument("--before", type=int, default=0, metavar="N")
    parser.add_argument("--alone", type=int, default=0, metavar="N")
    parser.add_argument("--copies", type=int, default=2, help="of each of the N heads")
    options = parser.parse_args(arguments)
    out, manifest = OutputFolder(options.run), read_manifest(options.cohort)
    # Without those that an interrupted call has not reached.
    files = [out.certificate_head(subject) for subject in held_out_controls(out)]
    heads = [PaintedHead.load(path) for path in files if path.is_file()]
    print(f"{len(heads)} of {len(files)} held-out controls")
    config = read_settings(out.config, saved_file=True).config
    point, _ = AnomalyModel.stored_threshold(out, config)
    assert point is not None
    certificate = certificate_of(heads, config, out, point.threshold, seed=0)
    print(same_painter(certificate))
    painted = [record for record in manifest.patients if kinds_file(record).exists()]
    print(other_painter(certificate, painted, out))
    if not (options.alone or options.before):
        return 0
    model = AnomalyModel.load(out, config, "cpu").with_stored_threshold(out)
    if options.alone:
        print(alone(model, out, options.alone, config.seed))
    if options.before:
        print(before_preparation(model, manifest, out, heads, options.before, options.copies, config.seed))
    return 0


# -- 1 -----------------------------------------------------------------------------------------------------------------
def same_painter(certificate: Certificate) -> str:
    cells = [cell for cell in certificate.cells if cell.lesions >= FEWEST]
    lines = [
        "",
        "Other heads, same painter",
        "",
        "| kind | ml | lesions | foretold | found | difference |",
        "|" + "---|" * 6,
    ]
    for cell in cells:
        band = f"{cell.smallest_ml:g} to {cell.largest_ml:g}"
        lines.append(_line(cell.kind, band, cell.lesions, cell.foretold, cell.observed, cell.standard_error))
    agreeing = sum(cell.agrees for cell in cells)
    return "\n".join([*lines, "", f"{agreeing} of {len(cells)} cells within {WITHIN}"])


def _line(kind: str, band: str, lesions: int, foretold: float, observed: float, error: float) -> str:
    return (
        f"| {kind} | {band} | {lesions} | {foretold:.2f} | {observed:.2f} | {observed - foretold:+.2f} ± {error:.2f} |"
    )


# -- 2 -----------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class NativeLesion:
    """Lesion of a painted scan: kind and strength in terms of the certificate, centre in MNI space (RAS+ mm)."""

    kind: str
    ml: float
    strength: float
    found: bool
    place_mm: np.ndarray


def other_painter(certificate: Certificate, painted: Sequence[SubjectRecord], out: OutputFolder) -> str:
    lesions = native_lesions(painted, out)
    lines = [
        "",
        f"Other heads, other painter, before preparation: {len(lesions)} lesions; there: with what the map of blind "
        "spots says of their places",
        "",
        "| kind | ml | lesions | foretold there | foretold | found | difference |",
        "|" + "---|" * 7,
    ]
    known = np.isfinite(certificate.logits[0])
    agreeing = cells = 0
    for kind, curve in certificate.curves.items():
        own = [lesion for lesion in lesions if lesion.kind == kind]
        logits = curve.coefficients[0] @ design(*np.array([(le.ml, le.strength) for le in own]).T, curve.usual).T
        away = np.linalg.norm([le.place_mm - certificate.places_mm[known] for le in own], axis=2)
        near = np.exp(-0.5 * (away / REACH_MM) ** 2)
        there = expit(logits + shifts(certificate.logits[0, known], certificate.found[known], near))
        p = expit(logits)
        for low, high in [*pairwise(BANDS_ML), (BANDS_ML[0], BANDS_ML[-1])]:
            inside = np.array([low <= lesion.ml < high for lesion in own], bool)
            if not (number := int(inside.sum())):
                continue
            foretold, observed = float(p[inside].mean()), float(np.array([le.found for le in own])[inside].mean())
            error = float(np.sqrt((p * (1 - p))[inside].sum()) / number)
            line = _line(kind, f"{low:g} to {high:g}", number, foretold, observed, error)
            lines.append(line.replace(f"| {number} |", f"| {number} | {there[inside].mean():.2f} |"))
            if number >= FEWEST and high - low < BANDS_ML[-1] - BANDS_ML[0]:
                cells, agreeing = cells + 1, agreeing + (abs(foretold - observed) <= WITHIN)
    return "\n".join([*lines, "", f"{agreeing} of {cells} cells of {FEWEST} lesions or more within {WITHIN}"])


def native_lesions(painted: Sequence[SubjectRecord], out: OutputFolder) -> list[NativeLesion]:
    """Lesions of the painted scans, as the scores of the run say which were found."""
    with (out.scores / "lesions.csv").open(newline="") as file:
        scored = list(csv.DictReader(file))
    lesions = []
    for record in painted:
        rows = [row for row in scored if row["subject"] == record.key]
        described = kinds_file(record).with_name(kinds_file(record).name.replace(".nii.gz", ".json"))
        listed = json.loads(described.read_text())["lesions"]
        contrast = _contrast(listed)
        centres = np.array([[float(row[f"{axis}_mm"]) for axis in "xyz"] for row in rows])
        places = TemplateTransform.load(out.transform_folder(record)).points_to_template(centres)
        # A lesion is recognised by its volume, of which a part may lie outside the brain mask.
        ml = np.array([float(row["volume_mm3"]) / 1000 for row in rows])
        given = np.array([lesion["ml"] for lesion in listed])
        for row, number in zip(*linear_sum_assignment(np.abs(np.log(ml[:, None] / given))), strict=True):
            name, effect = listed[number]["kind"], listed[number]["effect"]
            found = rows[row]["found"] == "yes"
            strength = _strength(name, effect, contrast)
            lesions.append(NativeLesion(SAME_KIND[name], float(given[number]), strength, found, places[row]))
    return lesions


def _contrast(listed: Sequence[dict]) -> float:
    """Grey-white contrast of a scan, from the changes of its lesions, which are known shares of it."""
    changes = [(le["kind"], abs(next(iter(_values(le["effect"]).values())))) for le in listed if le["kind"] in _FACTORS]
    (first, change), *_ = changes

    def misfit(contrast: float) -> float:
        return sum(min(abs(by / contrast - factor) for factor in _FACTORS[kind]) for kind, by in changes)

    return min((change / factor for factor in _FACTORS[first]), key=misfit)


def _values(effect: str) -> dict[str, float]:
    """Values in the text of an effect, such as ``Shift(change=-421.2)``."""
    call = ast.parse(effect, mode="eval").body
    assert isinstance(call, ast.Call)
    return {str(word.arg): float(ast.literal_eval(word.value)) for word in call.keywords}


def _strength(kind: str, effect: str, contrast: float) -> float:
    """Strength in the certificate's unit."""
    values = _values(effect)
    if kind == "blur":
        return values["sigma_mm"]
    if kind == "swelling":
        growth = values["growth"]
        return growth if growth > 0 else -growth / (1 + growth)
    return abs(next(iter(values.values()))) / contrast


# -- 3 -----------------------------------------------------------------------------------------------------------------
def before_preparation(
    model: AnomalyModel,
    manifest: Manifest,
    out: OutputFolder,
    heads: Sequence[PaintedHead],
    number: int,
    copies: int,
    seed: int,
) -> str:
    """Paint the lesions of the certificate into native scans, prepare these, and compare lesion by lesion."""
    chosen = held_out_controls(out)[:number]
    known = {head.key: head for head in heads}
    assert model.threshold is not None
    pairs: list[tuple[str, float, bool, bool]] = []
    for subject in chosen:
        mapper, record = Mapper.of(model, subject, out), manifest[subject.key]
        for copy in range(1, copies + 1):
            random = random_of(seed, subject.key, copy)
            wanted = wanted_lesions(random, (copy - 1) * LESIONS_A_COPY, LESIONS_A_COPY)
            after = paint_copy(mapper.brain, wanted, random)
            found_after = [le for le in known[subject.key].lesions if le.copy_number == copy]
            assert [le.ml for le in found_after] == [le.ml for le in after.lesions], "of another seed or model"
            image, labels = painted_natively(record, out, after.labels, after.lesions, mapper.brain.image)
            with tempfile.TemporaryDirectory(prefix="certificate-") as folder:
                path = Path(folder) / "scan.nii.gz"
                write_volume(path, image)
                scan = replace(record, images={"t1w": path})
                new = OutputFolder(Path(folder) / "out")
                found = found_before(model, scan, new, labels, len(after.lesions))
            pairs += [(le.kind, le.ml, le.found, bool(b)) for le, b in zip(found_after, found, strict=True)]
            print(f"  {subject.key} copy {copy}: {len(after.lesions)} lesions", flush=True)
    lines = [
        "",
        "Painted after and before preparation, the same lesions",
        "",
        "| kind | lesions | found after | before | different |",
        "|" + "---|" * 5,
    ]
    for kind in [*KINDS, "all"]:
        own = np.array([(after, before) for name, _, after, before in pairs if kind in (name, "all")])
        if len(own):
            after, before = own.mean(axis=0)
            different = int((own[:, 0] != own[:, 1]).sum())
            lines.append(f"| {kind} | {len(own)} | {after:.2f} | {before:.2f} | {different} |")
    return "\n".join(lines)


def found_in(
    record: SubjectRecord, out: OutputFolder, labels: np.ndarray, number: int, threshold: float, smallest_mm3: float
) -> np.ndarray:
    """Which lesions a cluster of the native map touches."""
    z, covered = read_volume(out.native_map(record)), read_mask(out.native_coverage(record))
    inside = covered.voxels & read_mask(out.native_brain_mask(record)).voxels
    clusters = find_lesions(z.with_voxels(inside & (z.voxels >= np.float32(threshold))))
    smallest = int(np.ceil(smallest_mm3 / z.grid.voxel_volume_mm3 - 1e-6))
    return found_lesions(clusters, smallest, labels, number)


def painted_natively(record: SubjectRecord, out: OutputFolder, labels, lesions, template: Volume):
    """Paint lesions of the template into the native scan with the painter of `painted_cohort`; image and labels."""
    scan, brain = read_volume(record.images["t1w"]), read_mask(out.native_brain_mask(record))
    transform = TemplateTransform.load(out.transform_folder(record))
    contrast, native = white_grey_contrast(scan, brain), np.zeros(scan.voxels.shape, np.int32)
    image = scan
    for lesion in lesions:
        shape = template.with_voxels((labels == lesion.number).astype(np.float32))
        soft = transform.to_native(shape, scan.grid, interpolation="linear")
        painted = paint_lesion(image, soft, _effect(lesion.kind, lesion.strength, contrast), softness_mm=SOFTNESS_MM)
        image = painted.image
        native[painted.lesion_mask.voxels] = lesion.number
    return image, native


def _effect(kind: str, strength: float, contrast: float) -> Effect:
    effects = {
        "dark": Shift(-strength * contrast),
        "bright": Shift(strength * contrast),
        "blurred": Blur(strength),
        "texture": Texture(strength * contrast, 0.8, 1),
        "swollen": Swelling(strength),
    }
    return effects[kind]


def found_before(
    model: AnomalyModel, scan: SubjectRecord, out: OutputFolder, labels: np.ndarray, number: int
) -> np.ndarray:
    from voxout.preprocessing.prepare_subject import prepare_subject

    prepare_subject(scan, model.config.preprocessing, out)
    mapped = model.map_prepared(scan, out, jobs=1)
    write_volume(_made(out.native_map(scan)), mapped.z_map)
    write_volume(_made(out.native_coverage(scan)), mapped.coverage)
    assert model.threshold is not None
    smallest = model.config.evaluation.smallest_cluster_mm3
    return found_in(scan, out, labels, number, model.threshold, smallest)


def _made(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


# -- 4 -----------------------------------------------------------------------------------------------------------------
def alone(model: AnomalyModel, out: OutputFolder, copies: int, seed: int) -> str:
    """Map each lesion of some copies alone, and compare."""
    subject = held_out_controls(out)[0]
    mapper, threshold = Mapper.of(model, subject, out), model.threshold
    assert threshold is not None
    smallest = int(np.ceil(model.config.evaluation.smallest_cluster_mm3 / model.mask.grid.voxel_volume_mm3 - 1e-6))
    healthy, pairs = mapper.brain.image.voxels, []
    for number in range(1, copies + 1):
        random = random_of(seed, subject.key, number)
        copy = paint_copy(mapper.brain, wanted_lesions(random, (number - 1) * LESIONS_A_COPY, LESIONS_A_COPY), random)
        nearest = ndimage.distance_transform_edt(copy.labels == 0, return_distances=False, return_indices=True)
        owner = copy.labels[tuple(np.asarray(nearest))]
        together = found_lesions(mapper.clusters(copy.image, threshold)[0], smallest, copy.labels, len(copy.lesions))
        for lesion in copy.lesions:
            image = copy.image.with_voxels(np.where(owner == lesion.number, copy.image.voxels, healthy))
            clusters, _ = mapper.clusters(image, threshold)
            own = found_lesions(clusters, smallest, copy.labels, len(copy.lesions))[lesion.number - 1]
            pairs.append((bool(together[lesion.number - 1]), bool(own)))
    both = np.array(pairs)
    different = int((both[:, 0] != both[:, 1]).sum())
    return (
        f"\nLesions of {copies} copies: {both[:, 0].sum()} of {len(both)} found with the others of the copy, "
        f"{both[:, 1].sum()} alone; {different} differ"
    )


if __name__ == "__main__":
    sys.exit(main())
