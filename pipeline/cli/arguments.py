"""Arguments of the command line. Imports no heavy library, so that `--help` is fast."""

import argparse
from importlib import metadata
from pathlib import Path

from ..workflow.stage_titles import STAGE_TITLES
from .dicom_arguments import add_dicom
from .model_arguments import add_adapt, add_adapt_scanner, add_apply, add_bundle, add_certify, add_model
from .output_arguments import add_describe, add_native, add_remove, add_status
from .score_arguments import add_compare, add_evaluate, add_maps, add_rivals
from .shared_options import add_cohort, add_runs, add_settings, add_shared, at_least_one, path_of, whole_number

_EXAMPLES = """\
examples:
  voxout demo                            run all stages on a synthetic cohort, no input needed
  voxout check cohort.csv out            check the input data
  voxout status out                      show how far a run is
  voxout describe out/scores/scores.csv  tell where an output comes from
  voxout plan cohort.csv                 foretell time, memory and disk space
  voxout run cohort.csv out              run all stages, from scans to report (out/report/index.html)
  voxout run cohort.csv out --set models.detector.nu=0.05
  voxout apply out new.csv new-out       map new patients with the model of an earlier run
  voxout apply out scan.nii.gz new-out   map a single scan, without a manifest
  voxout apply out --dicom study new-out map the T1w of a DICOM study
  voxout dicom out new-out sub-ID files  write its results as DICOM, for the archive
  voxout adapt-scanner out local.csv adapted   adapt a model to another scanner, with healthy scans of it
  voxout adapt out labelled.csv adapted  adapt a model to a few patients with lesion masks
  voxout certify out                     measure the detection limits of the model (out/certificate/index.html)
  voxout model pack out model.voxout     write the model to one file, to share; apply takes it in place of out
  voxout evaluate --maps maps --masks masks --brain-masks brains --healthy 'control*' --out scores
  voxout compare scores other-scores --out differences
  voxout rivals out --methods z-score denoising-unet   compare with other methods on the same scans

more than one step:
  voxout-bids BIDS out participant|group the same as a BIDS-App, with its arguments (docs/bids.md)
  voxout dicom in | out                  a DICOM study to NIfTI, results to DICOM
  voxout bundle export | import          a model as a MONAI bundle
  voxout model pack | unpack | show      a model as one file, to share
  voxout rivals                          other methods on the same scans
  Each has a --help of its own, as every command: voxout model pack --help

exit codes: 0 success; 1 a bug in voxout; 2 an error in the command, the settings or the data; 3 finished, but some
subjects failed (failures.csv lists them with the reasons); 130, 143 interrupted: the same command goes on
"""


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of `voxout`; `command` in the parsed arguments is the name of the command."""
    parser = argparse.ArgumentParser(
        prog="voxout",
        description="Voxel-wise anomaly maps of brain MRI, relative to healthy controls.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"voxout {metadata.version('voxout')}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    run = commands.add_parser("run", help="run all stages, from scans to report")
    add_cohort(run)
    add_runs(run)
    run.add_argument(
        "--requeue",
        action="store_true",
        help="run nothing, but write a script for SLURM that submits itself again until the run is done",
    )
    run.set_defaults(command="run", stages=tuple(STAGE_TITLES), model=None)
    for name, title in STAGE_TITLES.items():
        stage = commands.add_parser(name, help=title, description=f"{title[0].upper()}{title[1:]}.")
        stage.set_defaults(command="run", stages=(name,), model=None)
        add_cohort(stage, needed=name != "score")
        if name == "score":
            stage.description = (
                "Score the maps of a run against the lesion masks; COHORT and OUT as for `voxout run`. For maps of any "
                "other method, see `voxout evaluate`."
            )
            add_maps(stage, hidden=True)
            stage.set_defaults(command="score")
        if name in ("prepare", "map"):
            stage.add_argument("--subjects", nargs="+", metavar="ID", help="process only these subjects")
        if name == "report":
            add_runs(stage)
    add_evaluate(commands.add_parser("evaluate", help="evaluate maps of any method against lesion masks"))
    _add_plan(commands.add_parser("plan", help="foretell time, memory and disk space of a run"))
    add_compare(commands.add_parser("compare", help="compare the scores of two or more methods on the same subjects"))
    add_rivals(commands.add_parser("rivals", help="compare the maps of a run with other methods on the same scans"))
    add_apply(commands.add_parser("apply", help="map new subjects with the model of an earlier run"))
    add_adapt_scanner(commands.add_parser("adapt-scanner", help="adapt a model to a scanner, with healthy scans of it"))
    add_adapt(commands.add_parser("adapt", help="adapt a model to patients with lesion masks (2 to 20)"))
    add_dicom(commands.add_parser("dicom", help="convert the scan of a DICOM study; write results as DICOM"))
    add_certify(commands.add_parser("certify", help="measure how small and faint a lesion the model finds"))
    add_model(commands.add_parser("model", help="pack a model into one file to share, unpack it, show its card"))
    add_bundle(commands.add_parser("bundle", help="write a model as a MONAI bundle, or take it out of one"))
    add_remove(commands.add_parser("remove", help="delete the results of some subjects"))
    add_status(commands.add_parser("status", help="show how far a run is"))
    add_describe(commands.add_parser("describe", help="tell where an output comes from"))
    add_native(commands.add_parser("native", help="resample a volume from template space to a subject's native space"))
    demo = commands.add_parser("demo", help="run everything on a synthetic cohort")
    demo.add_argument("out", type=path_of, nargs="?", default=Path("voxout-demo"), metavar="OUT")
    demo.add_argument("--keep-model", type=path_of, metavar="FILE", help="pack the model into a new file *.voxout")
    add_shared(demo)
    demo.set_defaults(command="demo")
    return parser


def _add_plan(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Foretell time, memory and disk space of a run on this machine, stage by stage, without doing anything: for a "
        "cohort, or for numbers of heads."
    )
    parser.add_argument("cohort", type=path_of, nargs="?", metavar="COHORT", help="manifest (CSV) or BIDS folder")
    parser.add_argument("--controls", type=at_least_one, metavar="N", help="instead of COHORT: number of controls")
    parser.add_argument("--patients", type=whole_number, default=0, metavar="N", help="and of patients (default: 0)")
    parser.add_argument("--spacing", type=float, metavar="MM", help="resolution: sets preprocessing.spacing_mm")
    parser.add_argument("--preset", metavar="NAME", help="predefined settings, as for `voxout run`")
    add_settings(parser)
    parser.add_argument("--seeds", type=at_least_one, metavar="N", help="number of encoders")
    parser.add_argument("--jobs", type=at_least_one, metavar="N", help="subjects processed in parallel")
    parser.set_defaults(command="plan", quiet=False, verbose=False, dry_run=True)
