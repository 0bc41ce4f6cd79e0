"""Commands on fitted models: adapt to a scanner or to labels, certify, pack, unpack, show, write as a MONAI bundle."""

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ...data_manifests.errors import UserError, private
from ..exit_codes import DONE, SOME_FAILED
from ..workflow.standard_streams import write_line
from .program import exit_code, open_console, run_options

if TYPE_CHECKING:
    from ..workflow.runner import Stage


def adapt_scanner(options: argparse.Namespace) -> int:
    """Adapt a model to another scanner."""
    from ...data_manifests.cohort.manifest import read_manifest
    from ...data_manifests.cohort.output_paths import OutputFolder
    from ..adapt import adapt_scanner as adapt
    from ..model.unpack import model_folder
    from ..model.whole_model import require_whole_model

    manifest = read_manifest(options.cohort)
    with model_folder(options.model, None if options.dry_run else options.out) as model:
        require_whole_model(model)
        run, failures = adapt(run_options(options, manifest, model.root), lambda: open_console(options, options.out))
    if not options.dry_run:
        adapted = private(OutputFolder(options.out).root, "the output folder")
        run.console.say(f"adapted model: {adapted}; map patients of this scanner with `voxout apply`", level=-1)
    return exit_code(run, failures)


def adapt(options: argparse.Namespace) -> int:
    """Adapt a model to labelled patients, and say what that gains."""
    from ...data_manifests.cohort.manifest import read_manifest
    from ...data_manifests.cohort.output_paths import OutputFolder
    from ..adapt import adapt_to_labels
    from ..model.unpack import model_folder
    from ..model.whole_model import require_whole_model

    manifest = read_manifest(options.cohort)
    with model_folder(options.model, None if options.dry_run else options.out) as model:
        require_whole_model(model)
        run, failures = adapt_to_labels(
            run_options(options, manifest, model.root),
            lambda: open_console(options, options.out),
            head=options.head,
            variance_weight=options.variance_weight,
        )
    if not options.dry_run:
        from ...data_manifests.typed_json import load_json

        out = OutputFolder(options.out)
        content = load_json(out.adaptation / "adaptation.json")
        for sentence in content["sentences"]:
            run.console.say(sentence, level=-1)
        if not any(content["gain_is_shown"].values()):
            run.console.say(
                "No gain is shown: the labels may have changed nothing, or made it worse. Map patients with the model "
                "without labels, or add labelled patients.",
                level=-1,
            )
        adapted = private(out.root, "the output folder")
        run.console.say(f"adapted model: {adapted}; map patients with `voxout apply`", level=-1)
    return exit_code(run, failures)


def matching_stages(options: argparse.Namespace) -> "Mapping[str, Stage] | None":
    """Return the stages that apply a model with matched controls; None without `--matched-controls`."""
    if options.matched_controls is None:
        if options.age_sd is not None:
            raise UserError("--age-sd: found no --matched-controls, which it is for. Add --matched-controls COHORT.")
        return None
    from ...data_manifests.cohort.manifest import read_manifest
    from ...data_manifests.cohort.output_paths import OutputFolder
    from ...models.anomaly.matching import Matching
    from ..model.matched_model import MatchedControls
    from ..stages.order import matched_stages

    years = Matching().years if options.age_sd is None else options.age_sd
    cohort = read_manifest(options.matched_controls)
    return matched_stages(MatchedControls.read(OutputFolder(options.model), cohort, Matching(years)))


def certify(options: argparse.Namespace) -> int:
    """Measure the detection limits of a model, and say them in a sentence."""
    from ...data_manifests.typed_json import load_json
    from ..certify import CertifyOptions
    from ..certify import certify as measure

    asked = CertifyOptions(
        options.out, options.lesions, options.seed, options.device, options.jobs, command=options.asked
    )
    run, failures = measure(asked, lambda: open_console(options, options.out))
    run.console.say(load_json(run.out.certificate_numbers)["sentence"], level=-1)
    run.console.say(f"certificate: {private(run.out.certificate_page, 'the certificate')}", level=-1)
    for failure in failures:
        run.console.warn(f"not certified on {failure.key}: {failure.reason}")
    return SOME_FAILED if failures else DONE


def model(options: argparse.Namespace) -> int:
    """Pack or unpack a model, or show its card."""
    if options.action == "pack":
        return pack_model(options.folder, options.file, options.licence, options.note)
    from ..model.unpack import read_card, unpack

    if options.action == "unpack":
        write_line(str(unpack(options.file, options.folder).root), sys.stdout)
    else:
        write_line(read_card(options.file).rstrip(), sys.stdout)
    return DONE


def pack_model(folder: Path, file: Path, licence: str | None = None, note: str | None = None) -> int:
    """Pack a model into one file, and say how much its scores move."""
    from ...data_manifests.cohort.output_paths import OutputFolder
    from ...data_manifests.open_file import file_hash
    from ..model.pack import pack

    packed = pack(OutputFolder(folder), file, licence, note)
    for name, change in packed.changes.items():
        moved = f"scores move by {change.typical:.1%} of their spread" if change else "change not measured"
        merged = ", support vectors merged" if name in packed.merged else ""
        write_line(f"  {name}: {moved}{merged}", sys.stdout)
    if packed.threshold is None:
        write_line(
            "note: the model has no threshold, since its cohort was not mapped: pages will use 3.09, which one healthy "
            "voxel in a thousand exceeds. To set one, finish the run (`voxout run`), then pack the model again.",
            sys.stderr,
        )
    size = file.stat().st_size
    write_line(f"{file}: {size / 1e6:.1f} MB (the folder: {packed.before / 1e6:.1f} MB)", sys.stdout)
    write_line(f"SHA-256: {file_hash(file)}", sys.stdout)
    return DONE


def bundle(options: argparse.Namespace) -> int:
    """Write a model as a MONAI bundle, or take it out of one."""
    from ..bundle.export import export_bundle, import_bundle

    if options.action == "export":
        write_line(str(export_bundle(options.model, options.bundle, options.licence)), sys.stdout)
    else:
        write_line(str(import_bundle(options.bundle, options.folder).root), sys.stdout)
    return DONE
