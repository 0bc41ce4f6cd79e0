"""Detection limits of a fitted model, measured on lesions that are painted into its held-out controls.

The stage `CERTIFY` is no stage of a run: `voxout certify` does it alone, in the folder of a run. Lesions are painted
into prepared brains, since the registration of every painted copy would take most of the time.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import numpy as np

from ...data_manifests.cohort.output_paths import OutputFolder
from ...data_manifests.cohort.subject import Manifest, SubjectRecord, count_participants
from ...data_manifests.errors import UserError, counted, private, some_of
from ...data_manifests.images.volume import Volume
from ...data_manifests.synthetic.lesion_kinds import KINDS
from ...evaluation.certificate.blind_spots import blind_spot_map
from ...evaluation.certificate.certificate import REFERENCE, About, Certificate
from ...evaluation.certificate.page import CertificatePage, write_certificate_page
from ...evaluation.certificate.painted_heads import PaintedHead
from ...evaluation.certificate.tables import write_json_file, write_tables
from ...preprocessing.registration.template import load_template
from ..config.config import Config
from ..model.anomaly_model import model_of_process
from ..model.map_files import MapContext, write_map
from ..model.model_files import adapted_on, number_of_controls, read_trained_on, require_files_of_model
from ..model.painted_head import Trial, try_head
from ..workflow.earlier_subjects import earlier_subjects
from ..workflow.origin import Origin
from ..workflow.per_subject import cached, work_by_subject
from ..workflow.records import StageRecord, versions
from ..workflow.runner import Run, Stage, StageResult
from ..workflow.stage_inputs import fit_identity

FORMAT = 2
"""Increased whenever the same head and model give other lesions or another answer."""
ENOUGH_HEADS = 10
NAME = "certify"


# -- heads -------------------------------------------------------------------------------------------------------------
def held_out_controls(out: OutputFolder) -> list[SubjectRecord]:
    """Return the controls with a map of the model that it was not fitted to.

    Raises
    ------
    UserError
        There is none.
    """
    trained_on = read_trained_on(out)
    mapped = earlier_subjects(out, Manifest(()), {"the detectors": fit_identity(out)}).values()
    records = {subject.key: StageRecord.read(out.map_record(subject)) for subject in mapped}
    found = [
        subject
        for subject in mapped
        if subject.group == "control"
        and (record := records[subject.key]) is not None
        and record.scans.get("t1w") not in trained_on
        and StageRecord.read(out.subject_record(subject)) is not None
    ]
    if not found:
        raise UserError(
            f"{private(out.root, 'the output folder')}: found no mapped healthy control that the model was not fitted "
            f"to, expected at least 3, better {ENOUGH_HEADS}. Hold some out: write held_out in the column split of "
            "the cohort, or set data_manifests.held_out_share, and run `voxout run` again."
        )
    return found


def certify_stage(trial: Trial) -> Stage:
    """Return the stage that paints and maps lesions as `trial` says, and writes the certificate."""

    def inputs(run: Run) -> dict[str, Any]:
        of_heads = _inputs_of_heads(run, trial)
        evaluation = run.config.evaluation
        return {f"{name} of {key}": value for key, own in of_heads.items() for name, value in own.items()} | {
            "settings.evaluation.bootstrap_draws": evaluation.bootstrap_draws
        }

    def work(run: Run) -> StageResult:
        require_files_of_model(run.model)
        own = _inputs_of_heads(run, trial)
        device = run.device_of_workers or run.device
        done = work_by_subject(
            run, NAME, write_head, own, run.out.certificate_record, run.config, run.out, device, trial
        )
        heads = [PaintedHead.load(run.out.certificate_head(run.manifest[key])) for key in done.done]
        certificate = write_certificate(run, heads, trial)
        return StageResult(
            outputs=done.outputs,
            done=done.done,
            failed=done.failed,
            warnings=done.warnings,
            summary=f"{done.summary}, {counted(len(certificate.lesions), 'lesion')}",
        )

    parts = ("page", "numbers", "tables", "figures", "maps")
    return Stage(
        NAME,
        inputs,
        work,
        tuple(f"certificate_{part}" for part in parts),
        retry_failed=True,
        title="paint lesions into the held-out controls, and find them",
    )


def _inputs_of_heads(run: Run, trial: Trial) -> dict[str, dict[str, Any]]:
    shared = {
        "the detectors": fit_identity(run.model),
        "the threshold": trial.threshold,
        "lesions a head": trial.lesions,
        "seed of the lesions": trial.seed,
        "format of the trial": FORMAT,
        "settings.evaluation.smallest_cluster_mm3": run.config.evaluation.smallest_cluster_mm3,
    }
    records = {subject.key: StageRecord.read(run.out.subject_record(subject)) for subject in run.manifest}
    return {key: {"prepared": record.identity, **shared} for key, record in records.items() if record is not None}


def write_head(
    subject: SubjectRecord,
    inputs: Mapping[str, Any],
    origin: Origin,
    config: Config,
    out: OutputFolder,
    device: str,
    trial: Trial,
) -> StageRecord:
    """Paint lesions into one head, map its copies, and write which lesions were found."""

    def work(built: OutputFolder) -> Sequence[str]:
        model = model_of_process(out.root, fit_identity(out), config, device)
        path = built.certificate_head(subject)
        path.parent.mkdir(parents=True, exist_ok=True)
        try_head(model, subject, out, trial).save(path)
        return ()

    path = out.certificate_record(subject)
    return cached(NAME, subject, path, inputs, out, ("certificate_heads",), work, origin=origin, device=device)


# -- certificate -------------------------------------------------------------------------------------------------------
def certificate_of(
    heads: Sequence[PaintedHead], config: Config, model: OutputFolder, threshold: float, *, seed: int
) -> Certificate:
    """Return the certificate of a model from the lesions of all heads."""
    about = About(
        threshold=threshold,
        smallest_cluster_mm3=config.evaluation.smallest_cluster_mm3,
        spacing_mm=config.preprocessing.spacing_mm,
        scorers=tuple(config.models.ensemble.scorers),
        training_controls=number_of_controls(model),
        version=versions()["voxout"],
        learned_from=_learned_from(config),
        modalities=tuple(config.preprocessing.modalities),
    )
    return Certificate(about, tuple(heads), config.evaluation.bootstrap_draws, seed)


def write_certificate(run: Run, heads: Sequence[PaintedHead], trial: Trial) -> Certificate:
    """Fit the curves to the lesions of all heads, and write page, tables and map."""
    config, template = run.config, load_template(run.config.preprocessing.spacing_mm)
    certificate = certificate_of(heads, config, run.model, trial.threshold, seed=trial.seed)
    write_json_file(run.out.certificate_numbers, certificate)
    write_tables(run.out.certificate_tables, certificate)
    scored = Volume(template.brain_mask.voxels, template.grid)
    blind_spots = None
    if REFERENCE in certificate.curves:
        known = np.isfinite(certificate.logits[0])
        blind_spots = blind_spot_map(
            scored,
            certificate.places_mm[known],
            certificate.logits[0, known],
            certificate.found[known],
            certificate.curves[REFERENCE],
            KINDS[REFERENCE].usual,
        )
        context = MapContext.of_model(config, fit_identity(run.model), trial.threshold, adapted_on(run.model))
        write_map(run.out.blind_spots, blind_spots, context)
    page = CertificatePage(
        certificate,
        datetime.now().astimezone(),
        versions(),
        template.t1w,
        template.brain_mask,
        blind_spots,
        warnings_of(certificate),
    )
    write_certificate_page(run.out.certificate_page, page)
    return certificate


def warnings_of(certificate: Certificate) -> tuple[str, ...]:
    """Return what limits the certificate."""
    found, missing = [], [kind.title for kind in KINDS.values() if kind.name not in certificate.curves]
    if (heads := count_participants([head.key for head in certificate.heads])) < ENOUGH_HEADS:
        found.append(
            f"{counted(heads, 'healthy participant')}: intervals over so few are uncertain; {ENOUGH_HEADS} or more are "
            "better."
        )
    if missing:
        found.append(f"Too few lesions for a curve: {some_of(missing)}.")
    return tuple(found)


def _learned_from(config: Config) -> tuple[str, ...]:
    models = config.models
    families = models.learned.families if "learned" in models.ensemble.scorers else ()
    if models.contrast.weight > 0 and models.ensemble.needs_encoder:
        families = (*families, *(name for name in models.contrast.families if name not in families))
    return tuple(families)
