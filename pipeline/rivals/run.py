"""`voxout rivals`: runs the methods one after the other, compares them, and writes tables and the page."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from pathlib import Path

import numpy as np

from ...data_manifests.atomic_write import atomic_write
from ...data_manifests.cohort.output_paths import OutputFolder
from ...data_manifests.csv_file import write_csv
from ...data_manifests.errors import UserError, counted, private, without_names
from ...data_manifests.images.volume import Volume, read_volume
from ...evaluation.figures.colour_scale import ColourScale
from ...evaluation.figures.slices import Head
from ...evaluation.metrics.bootstrap import Estimate
from ...evaluation.report.rivals_page import PatientMaps, RivalsReport, write_rivals_page
from ...evaluation.scoring.side_by_side import (
    Contender,
    SideBySide,
    compare_side_by_side,
    differences_in_words,
)
from ...evaluation.scoring.tables import FIELDS
from ...models.rivals.frozen_encoders import require_weights
from ...models.rivals.presets import preset_named
from ...models.rivals.registry import ENTRIES, OWN, make, title_of
from ..stages.score import prepared_lesions
from ..workflow.console import Console
from ..workflow.earlier_subjects import COMPARISON
from ..workflow.records import versions
from .cohort import RivalCohort, SettingChanges
from .lesion_table import read_lesion_table
from .method import Cost, MethodScores, run_method, run_own

_JSON, _CSV, _GROUPS, _PAGE = COMPARISON
_PATIENTS = 3


@dataclass(frozen=True)
class RivalsOptions:
    """What `voxout rivals` is asked to do.

    Attributes
    ----------
    methods : sequence of str
        Names; all that come with voxout if empty.
    preset : str
    lesions : Path or None
        Table of the kinds of lesions.
    device : str
    jobs : int or None
    changes : SettingChanges
        To the settings of the run.
    encoder_weights : Path or None
        Of the encoder of `feature-inversion`; it is trained on the controls if None.
    """

    methods: Sequence[str] = ()
    preset: str = "cpu"
    lesions: Path | None = None
    device: str = "cpu"
    jobs: int | None = None
    changes: SettingChanges = field(default_factory=SettingChanges)
    encoder_weights: Path | None = None

    def cohort(self, out: OutputFolder) -> RivalCohort:
        """Open the run that the methods are compared on."""
        preset, weights = preset_named(self.preset), self.encoder_weights
        if weights is not None:
            require_weights(weights)
        cohort = RivalCohort.open(out, preset, device=self.device, jobs=self.jobs, changes=self.changes)
        return replace(cohort, controls=replace(cohort.controls, encoder_weights=weights))

    def names(self) -> list[str]:
        """Names of the methods, each once.

        Raises
        ------
        UserError
            One of them does not exist, or cannot be used.
        """
        names = [name for name in dict.fromkeys(self.methods or ENTRIES) if name != OWN]
        for name in names:
            make(name)
        return names


@dataclass(frozen=True, eq=False)
class Compared:
    """Result of `voxout rivals`.

    Attributes
    ----------
    table : SideBySide
    failures : tuple of str
        Sentences about methods and subjects that failed.
    page : Path
    """

    table: SideBySide
    failures: tuple[str, ...]
    page: Path


def compare_rivals(out: OutputFolder, options: RivalsOptions, console: Console) -> Compared:
    """Run methods on the scans of a finished run, and compare them with its own maps.

    A method that fails is named, and the others go on.

    Raises
    ------
    UserError
        The run is not finished, a method does not exist, or no method could be run.
    """
    names, cohort = options.names(), options.cohort(out)
    kinds = read_lesion_table(options.lesions, cohort.subjects) if options.lesions is not None else ()
    results, failures = [run_own(cohort)], []
    for number, name in enumerate(names, 1):
        console.say(f"[{number}/{len(names)}] {name}: {title_of(name)}")
        try:
            with console.progress(name, "map") as progress:
                found = run_method(name, cohort, progress)
        except UserError as error:
            reason = f"{name} is left out. {error}"
            console.warn(f"    {reason}")
            failures.append(reason)
            continue
        for failure in found.failures:
            console.warn(f"    {failure.reason}")
            failures.append(failure.reason)
        console.say(f"    best form: {found.chosen}; {cost_text(found.cost)}")
        results.append(found)
    if len(results) == 1:
        raise UserError(["rivals: no method could be run, expected at least one.", *failures])
    table = compare_side_by_side(
        [
            Contender(method.name, title_of(method.name), form, method.scores[form], method.points[form])
            for method in results
            for form in method.scores
        ],
        {method.name: method.chosen for method in results},
        OWN,
        cohort.config.evaluation,
        seed=cohort.config.seed,
        kinds=kinds,
    )
    failures = [without_names(failure) for failure in failures]
    write_comparison(out.rivals, table, results, failures)
    page = write_rivals_page(out.rivals / _PAGE, _report(cohort, table, results, failures))
    return Compared(table, tuple(failures), page)


def would_do(out: OutputFolder, options: RivalsOptions) -> list[str]:
    """Say what `compare_rivals` would do, without doing it.

    Raises
    ------
    UserError
        As `compare_rivals`, where it shows without work.
    """
    names, cohort = options.names(), options.cohort(out)
    return [
        f"would fit {counted(len(names), 'method')} on {counted(len(cohort.controls), 'control')}, map "
        f"{counted(len(cohort.subjects), 'subject')} with each, and compare them",
        *(f"  {name}: {title_of(name)}" for name in names),
    ]


def cost_text(cost: Cost) -> str:
    """Describe the cost of a method."""
    text = f"{cost.cpu_s / 60:.1f} CPU-min" if cost.cpu_s >= 60 else f"{cost.cpu_s:.0f} CPU-s"
    if cost.cpu_s_a_step is not None:
        trainings = counted(cost.trainings, "training")
        text += f", {trainings} of at most {counted(cost.steps, 'step')}, {cost.cpu_s_a_step:.2g} CPU-s a step"
    return text


def write_comparison(folder: Path, table: SideBySide, results: Sequence[MethodScores], failures: Sequence[str]) -> None:
    """Write the files of `COMPARISON` but the page; the tables have a row per method, form and metric or group."""
    chosen = {method.name: method.chosen for method in results}
    rows = [
        {
            "method": row.contender.name,
            "form": row.contender.form,
            "chosen": row.contender.form == chosen[row.contender.name],
            "metric": name,
            **{field: getattr(estimate, field) for field in FIELDS},
            **{f"difference_{field}": value for field, value in _fields_of(row.differences.get(name)).items()},
        }
        for row in table.every_form
        for name, estimate in row.estimates.items()
    ]
    groups = [{"method": row.method, "by": row.by, "group": row.group, **_fields_of(row.found)} for row in table.groups]
    about = {
        "reference": table.reference,
        "subjects": list(table.subjects),
        "subjects_left_out": list(table.left_out),
        "failures": list(failures),
        "in_words": differences_in_words(table),
        "on_edits": {method.name: dict(method.on_edits) for method in results},
        "costs": {method.name: asdict(method.cost) for method in results},
        "versions": versions(),
    }
    with atomic_write(folder / _JSON) as temporary:
        content = {"about": about, "metrics": rows, "lesion_groups": groups}
        temporary.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    for name, lines in ((_CSV, rows), (_GROUPS, groups)):
        if lines:
            write_csv(folder / name, [*lines[0]], ([*line.values()] for line in lines))


def _fields_of(estimate: Estimate | None) -> dict[str, object]:
    return {field: None if estimate is None else getattr(estimate, field) for field in FIELDS}


def _report(
    cohort: RivalCohort, table: SideBySide, results: Sequence[MethodScores], failures: Sequence[str]
) -> RivalsReport:
    chosen = _shown_patients(table)
    settings = cohort.config.evaluation
    return RivalsReport(
        created=datetime.now().astimezone(),
        table=table,
        patients=[
            PatientMaps(key, why, {method.name: _head(cohort, method, key) for method in results})
            for key, why in chosen.items()
        ],
        on_edits={method.name: method.on_edits for method in results},
        costs={method.name: cost_text(method.cost) for method in results if method.name != OWN},
        failures=failures,
        settings={
            "controls": str(len(cohort.controls)),
            "preset": cohort.controls.preset.name,
            "space": settings.space,
            "false clusters allowed": f"{settings.false_clusters:g} per healthy brain",
        },
        versions=versions(),
    )


def _shown_patients(table: SideBySide) -> Mapping[str, str]:
    """Choose the patients with the lowest, median and highest average precision of the reference; say why."""
    reference = next(row for row in table.rows if row.contender.name == table.reference)
    own = {s.key: s.average_precision.value for s in reference.contender.subjects if s.key in table.subjects}
    ranked = sorted((value, key) for key, value in own.items() if value is not None)
    places = {0: "lowest", (len(ranked) - 1) // 2: "median", len(ranked) - 1: "highest"}
    return {
        ranked[place][1]: f"{which} average precision of {table.reference}, {ranked[place][0]:.2g}"
        for place, which in list(places.items())[:_PATIENTS]
        if ranked
    }


def _head(cohort: RivalCohort, method: MethodScores, key: str) -> Head:
    """Scan and map of a patient on the template grid, coloured from the threshold of the method on."""
    subject, mask = cohort.subjects[key], cohort.controls.mask
    threshold = method.points[method.chosen].threshold
    values = method.template_map(key)
    scale = ColourScale.at(threshold if np.isfinite(threshold) else float(values.max()))
    scan = read_volume(cohort.out.prepared_image(subject, cohort.controls.channels.modalities[0]))
    return Head.from_volumes(
        scan,
        Volume(mask.inverse_transform(values.astype(np.float32)), mask.grid),
        scale,
        brain_mask=cohort.brain_mask(key),
        covered=cohort.coverage(key),
        lesion_mask=prepared_lesions(subject, cohort.out),
    )


def closing_lines(compared: Compared) -> list[str]:
    """Sentences for the terminal at the end."""
    return [*differences_in_words(compared.table), f"report: {private(compared.page, 'the report')}"]
