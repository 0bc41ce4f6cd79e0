"""Arguments of the command line. Imports no heavy library, so that `--help` is fast."""

import argparse
import re
from importlib import metadata
from pathlib import Path

from ...data_manifests.errors import UserError
from ...data_manifests.terms import MODALITIES
from ...data_manifests.user_paths import given_path
from ..workflow.stage_titles import STAGE_TITLES

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
    _add_cohort(run)
    _add_runs(run)
    run.add_argument(
        "--requeue",
        action="store_true",
        help="run nothing, but write a script for SLURM that submits itself again until the run is done",
    )
    run.set_defaults(command="run", stages=tuple(STAGE_TITLES), model=None)
    for name, title in STAGE_TITLES.items():
        stage = commands.add_parser(name, help=title, description=f"{title[0].upper()}{title[1:]}.")
        stage.set_defaults(command="run", stages=(name,), model=None)
        _add_cohort(stage, needed=name != "score")
        if name == "score":
            stage.description = (
                "Score the maps of a run against the lesion masks; COHORT and OUT as for `voxout run`. For maps of any "
                "other method, see `voxout evaluate`."
            )
            _add_maps(stage, hidden=True)
            stage.set_defaults(command="score")
        if name in ("prepare", "map"):
            stage.add_argument("--subjects", nargs="+", metavar="ID", help="process only these subjects")
        if name == "report":
            _add_runs(stage)
    evaluate = commands.add_parser("evaluate", help="evaluate maps of any method against lesion masks")
    evaluate.description = (
        "Evaluate maps of any method against lesion masks. The files of a subject are matched by id: the start of BIDS "
        "names (sub-01_...), otherwise the file name without its suffix. If the name contains more, give a path with "
        "{id} in place of the id, as in --maps 'maps/{id}_map.nii.gz'. Put quotes around a path with *."
    )
    _add_maps(evaluate)
    _add_settings(evaluate)
    _add_work(evaluate)
    evaluate.set_defaults(command="evaluate")
    plan = commands.add_parser("plan", help="foretell time, memory and disk space of a run")
    plan.description = (
        "Foretell time, memory and disk space of a run on this machine, stage by stage, without doing anything: for a "
        "cohort, or for numbers of heads."
    )
    plan.add_argument("cohort", type=_path, nargs="?", metavar="COHORT", help="manifest (CSV) or BIDS folder")
    plan.add_argument("--controls", type=at_least_one, metavar="N", help="instead of COHORT: number of controls")
    plan.add_argument("--patients", type=whole_number, default=0, metavar="N", help="and of patients (default: 0)")
    plan.add_argument("--spacing", type=float, metavar="MM", help="resolution: sets preprocessing.spacing_mm")
    plan.add_argument("--preset", metavar="NAME", help="predefined settings, as for `voxout run`")
    _add_settings(plan)
    plan.add_argument("--seeds", type=at_least_one, metavar="N", help="number of encoders")
    plan.add_argument("--jobs", type=at_least_one, metavar="N", help="subjects processed in parallel")
    plan.set_defaults(command="plan", quiet=False, verbose=False, dry_run=True)
    compare = commands.add_parser("compare", help="compare the scores of two or more methods on the same subjects")
    compare.description = (
        "Score two or more methods again on the subjects they have in common, and print the differences (second minus "
        "first) of all metrics with 95 % intervals from a bootstrap over the same subjects."
    )
    compare.add_argument(
        "folders", type=_path, nargs="+", metavar="SCORES", help="folders of `voxout evaluate` or runs"
    )
    compare.add_argument("--out", type=_path, required=True, metavar="DIR", help="folder for compare.json, compare.csv")
    compare.add_argument("--seed", type=whole_number, default=0, help="random seed of the bootstrap")
    compare.set_defaults(command="compare")
    _add_rivals(commands.add_parser("rivals", help="compare the maps of a run with other methods on the same scans"))
    apply = commands.add_parser("apply", help="map new subjects with the model of an earlier run")
    apply.add_argument(
        "model", type=_path, metavar="MODEL", help="output folder of the earlier run, or a packed model (.voxout)"
    )
    apply.description = (
        "Map new subjects with the model of an earlier run, with its settings and its threshold. Only settings of the "
        "section evaluation can be changed, such as evaluation.recalibrate: set the threshold on healthy scans of the "
        "new cohort, for instance of another scanner."
    )
    what = "manifest (CSV), BIDS folder, a single T1w scan (.nii, .nii.gz, .mgz), or with --dicom a DICOM study"
    _add_cohort(apply, what=what, fits=False)
    apply.add_argument(
        "--flair", type=_path, metavar="SCAN", help="with a single scan: its FLAIR, if the model uses it"
    )
    apply.add_argument("--brain-mask", type=_path, metavar="MASK", help="with a single scan: its brain mask")
    apply.add_argument(
        "--age", type=float, metavar="YEARS", help="with a single scan: age, to compare with the controls"
    )
    apply.add_argument("--dicom", action="store_true", help="COHORT is the folder of a DICOM study")
    _add_choice_of_series(apply)
    apply.set_defaults(command="apply")
    adapt = commands.add_parser("adapt-scanner", help="adapt a model to another scanner, with healthy scans of it")
    adapt.add_argument("model", type=_path, metavar="MODEL", help="output folder of a run, or a packed model (.voxout)")
    adapt.description = (
        "Adapt a model to another scanner: calibrate its scores and set its threshold on healthy controls of that "
        "scanner, at least 5 and better 20 or more. OUT holds the adapted model, to be used like that of a run; the "
        "given model is not changed."
    )
    _add_cohort(adapt, what="manifest (CSV) or BIDS folder of healthy controls", fits=False)
    adapt.set_defaults(command="adapt-scanner")
    _add_labels(commands.add_parser("adapt", help="adapt a model to patients with lesion masks (2 to 20)"))
    _add_dicom(commands.add_parser("dicom", help="convert the scan of a DICOM study; write results as DICOM"))
    certify = commands.add_parser("certify", help="measure how small and faint a lesion the model finds")
    certify.description = (
        "Measure the detection limits of the model of a run: lesions of five kinds are painted into its held-out "
        "controls and mapped, and the probability of finding them is fitted by size and strength. OUT/certificate "
        "holds a page, tables and a map of blind spots."
    )
    certify.add_argument("out", type=_path, metavar="OUT", help="output folder of the run that fitted the model")
    certify.add_argument(
        "--lesions", type=at_least_one, default=320, metavar="N", help="lesions in each head (default: 320)"
    )
    certify.add_argument("--seed", type=whole_number, help="random seed of the lesions (default: that of the run)")
    certify.add_argument("--device", default="auto", metavar="NAME", help="as for `voxout run`")
    certify.add_argument("--jobs", type=at_least_one, metavar="N", help="heads in parallel (default: one per core)")
    certify.add_argument("-v", "--verbose", action="store_true", help="print one line per head")
    certify.add_argument("-q", "--quiet", action="store_true", help="print only results and errors")
    certify.set_defaults(command="certify", dry_run=False)
    _add_model(commands.add_parser("model", help="pack a model into one file to share, unpack it, show its card"))
    _add_bundle(commands.add_parser("bundle", help="write a model as a MONAI bundle, or take it out of one"))
    remove = commands.add_parser("remove", help="delete the results of some subjects")
    remove.description = (
        "Delete the prepared images, latents, maps, pages and scores of subjects, but no input. What was made of all "
        "controls together (patches, model) stays, and is named."
    )
    remove.add_argument("out", type=_path, metavar="OUT", help="output folder of a run")
    remove.add_argument("subjects", nargs="+", metavar="ID", help="sub-01, or sub-01_ses-2")
    remove.set_defaults(command="remove", quiet=False, verbose=False, dry_run=False)
    status = commands.add_parser("status", help="show how far a run is")
    status.description = (
        "Show how far a run is, also while it works: subjects by stage, rate and time left, and the reason of each "
        "failure. OUT/status.csv has a row per subject and stage, as of the last stage that ended."
    )
    status.add_argument("out", type=_path, metavar="OUT", help="output folder of a run")
    status.add_argument("--table", action="store_true", help="print the table of now, as CSV")
    status.set_defaults(command="status", quiet=False, verbose=False, dry_run=True)
    describe = commands.add_parser("describe", help="tell where an output comes from")
    describe.description = (
        "Tell where a file or folder comes from that voxout wrote: command, stage, time, inputs, settings that differ "
        "from the defaults, versions, seed, hashes, kind of machine, and whether it was changed since. For an output "
        "folder with a model and for a packed model, with the model card."
    )
    describe.add_argument(
        "path", type=_path, metavar="PATH", help="a map, a page, a table, a folder, a packed model, an output folder"
    )
    describe.add_argument("--json", action="store_true", help="print it as JSON")
    describe.set_defaults(command="describe", quiet=False, verbose=False, dry_run=True)
    native = commands.add_parser("native", help="resample a volume from template space to a subject's native space")
    _add_native(native)
    demo = commands.add_parser("demo", help="run everything on a synthetic cohort")
    demo.add_argument("out", type=_path, nargs="?", default=Path("voxout-demo"), metavar="OUT")
    demo.add_argument("--keep-model", type=_path, metavar="FILE", help="pack the model into a new file *.voxout")
    add_shared(demo)
    demo.set_defaults(command="demo")
    return parser


def _add_dicom(parser: argparse.ArgumentParser) -> None:
    parser.description = "DICOM in and out; needs the extra dicom: pip install '.[dicom]' (docs/dicom.md)."
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    into = actions.add_parser("in", help="convert the T1w (and FLAIR) of a study to NIfTI")
    into.description = (
        "Find the T1w (and FLAIR) of a DICOM study by its tags, check its geometry, and convert it to NIfTI and JSON "
        "without anything that identifies the patient. To apply a model at once: voxout apply MODEL --dicom STUDY OUT."
    )
    into.add_argument("cohort", type=_path, metavar="STUDY", help="folder of a study or series; only read")
    into.add_argument("out", type=_path, metavar="OUT", help="folder for the scan")
    _add_choice_of_series(into)
    into.add_argument("-q", "--quiet", action="store_true", help="print only results and errors")
    into.set_defaults(command="dicom", action="in", verbose=False, dry_run=False)
    back = actions.add_parser("out", help="write the results of a subject as DICOM")
    back.description = (
        "Write the results of a subject as DICOM on the grid of its original series: pictures of axial slices with the "
        "map burnt in, an overview, the findings as Segmentation, the z-scores as Parametric Map, and the report as "
        "PDF. They hold the patient's name, for the archive that the scan came from."
    )
    back.add_argument("out", type=_path, metavar="OUT", help="output folder of `voxout apply`")
    back.add_argument("id", metavar="SUBJECT", help="sub-01, or sub-01_ses-2")
    back.add_argument("target", type=_path, metavar="TARGET", help="new folder for the DICOM files")
    back.add_argument("--scans", type=_path, metavar="DIR", help="folder of `voxout dicom in`, if it converted it")
    back.add_argument("--study", type=_path, metavar="DIR", help="folder of the original images, if they were moved")
    back.add_argument("--send", metavar="AET@HOST:PORT", help="send the files to this archive, too (C-STORE)")
    back.add_argument("--calling-aet", default="VOXOUT", metavar="AET", help="own AE title (default: VOXOUT)")
    back.set_defaults(command="dicom", action="out")


def _add_choice_of_series(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--series", metavar="NUMBER", help="number or UID of the T1w series (default: by its tags)")
    parser.add_argument("--flair-series", metavar="NUMBER", help="number or UID of the FLAIR series")
    parser.add_argument("--subject", metavar="ID", help="id of letters and digits (default: made from the study's UID)")
    parser.add_argument("--session", metavar="ID", help="id of the session, of letters and digits")


def _add_rivals(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Fit other methods on the controls of a run, map its patients and held-out controls with them, and compare "
        "them with voxout's own maps (docs/rivals.md). With COHORT, `voxout run COHORT OUT` is brought up to date "
        "first. An interrupted comparison goes on. Results: OUT/rivals."
    )
    parser.add_argument(
        "paths", type=_path, nargs="+", metavar="[COHORT] OUT", help="manifest or BIDS folder, and output folder"
    )
    parser.add_argument("--methods", nargs="+", default=[], metavar="NAME", help="names; all that come with voxout")
    parser.add_argument("--preset", default="cpu", metavar="NAME", help="sizes of networks: cpu (default) or paper")
    parser.add_argument(
        "--run-preset", metavar="NAME", help="with COHORT: predefined settings of the run, as for `voxout run`"
    )
    parser.add_argument(
        "--lesions",
        type=_path,
        metavar="CSV",
        help="table of lesions: subject, x_mm, y_mm, z_mm, and columns to group by, such as kind and contrast",
    )
    _add_settings(parser)
    parser.add_argument("--device", default="auto", metavar="NAME", help="cpu, cuda, ... (default: GPU if available)")
    _add_work(parser)
    parser.set_defaults(command="rivals", seeds=None, cluster="local", scheduler=None, model=None)


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.description = "Share a fitted model: one file without scans and ids (docs/sharing-models.md)."
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    pack = actions.add_parser("pack", help="write a model to one file")
    pack.add_argument("folder", type=_path, metavar="OUT", help="output folder of the run that fitted it")
    pack.add_argument("file", type=_path, metavar="FILE", help="file to write, *.voxout")
    pack.add_argument("--licence", metavar="TEXT", help="licence of the model, for its card: 'CC BY 4.0'")
    pack.add_argument("--note", metavar="TEXT", help="a sentence for its card, as on scanner, protocol or a paper")
    unpack = actions.add_parser("unpack", help="unpack a model into a folder")
    unpack.add_argument("file", type=_path, metavar="FILE", help="packed model")
    unpack.add_argument("folder", type=_path, metavar="FOLDER", help="new folder")
    show = actions.add_parser("show", help="check a packed model and print its card")
    show.add_argument("file", type=_path, metavar="FILE", help="packed model")
    for action, name in ((pack, "pack"), (unpack, "unpack"), (show, "show")):
        action.set_defaults(command="model", action=name)


def _add_bundle(parser: argparse.ArgumentParser) -> None:
    parser.description = "A fitted model as a MONAI bundle, which `python -m monai.bundle run` runs (docs/bundle.md)."
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    export = actions.add_parser("export", help="write a model as a MONAI bundle")
    export.add_argument(
        "model", type=_path, metavar="MODEL", help="output folder of a run, or a packed model (.voxout)"
    )
    export.add_argument("bundle", type=_path, metavar="BUNDLE", help="new folder")
    export.add_argument("--licence", metavar="TEXT", help="licence of the model, for its card: 'CC BY 4.0'")
    taken = actions.add_parser("import", help="take the model out of a bundle; nothing of it is run")
    taken.add_argument("bundle", type=_path, metavar="BUNDLE", help="folder that `voxout bundle export` wrote")
    taken.add_argument("folder", type=_path, metavar="FOLDER", help="new folder, to be used like that of a run")
    for action, name in ((export, "export"), (taken, "import")):
        action.set_defaults(command="bundle", action=name)


def _add_native(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Resample a volume from MNI152NLin2009aSym to the grid of a subject's own image, once; or, with --transforms, "
        "write the subject's transforms for other tools."
    )
    parser.add_argument("folder", type=_path, metavar="OUT", help="output folder of a run that prepared the subject")
    parser.add_argument("subject", metavar="ID", help="sub-01, or sub-01_ses-2")
    parser.add_argument(
        "volume", type=_path, nargs="?", metavar="VOLUME", help="NIfTI file in template space, on any grid"
    )
    parser.add_argument(
        "result",
        type=_path,
        nargs="?",
        metavar="RESULT",
        help="NIfTI file to write; overwrites an earlier result of this command, but no other file",
    )
    parser.add_argument("--image", choices=MODALITIES, default="t1w", help="native space of which image (default: t1w)")
    parser.add_argument("--like", type=_path, metavar="IMAGE", help="image that defines the grid (default: the T1w)")
    parser.add_argument(
        "--labels",
        action="store_true",
        help="for atlases and masks: labels are whole numbers and keep their data type and value; atlases are "
        "resampled by nearest neighbours, masks keep their volume",
    )
    parser.add_argument(
        "--transforms",
        type=_path,
        metavar="FOLDER",
        help="instead of VOLUME and RESULT: write the transforms between the image and the template as composite ITK "
        "files (.h5), for ANTs and other tools",
    )
    parser.set_defaults(command="native")


def _add_cohort(
    parser: argparse.ArgumentParser,
    *,
    needed: bool = True,
    what: str = "manifest (CSV) or BIDS folder",
    fits: bool = True,
) -> None:
    number = None if needed else "?"
    parser.add_argument("cohort", type=_path, nargs=number, metavar="COHORT", help=what)
    parser.add_argument("out", type=_path, nargs=number, metavar="OUT", help="output folder")
    add_shared(parser, fits=fits)


def _add_labels(parser: argparse.ArgumentParser) -> None:
    """Add the options of `voxout adapt`."""
    parser.description = (
        "Adapt a model to a few patients with lesion masks: how its scorers are combined is learnt from them, and "
        "calibrated on the model's training controls as before. What is gained is measured on patients that are left "
        "out, and told only if it is shown. OUT holds the adapted model, to be used like that of a run; the given "
        "model is not changed. With healthy scans of another scanner, use `voxout adapt-scanner`."
    )
    parser.add_argument("model", type=_path, metavar="MODEL", help="output folder of the run that fitted the model")
    _add_cohort(parser, what="manifest (CSV) or BIDS folder of patients with lesion masks", fits=False)
    parser.add_argument(
        "--head",
        action="store_true",
        help="also train a small network on the scorers' outputs and the latents (experimental)",
    )
    parser.add_argument(
        "--variance-weight",
        type=float,
        default=0.0,
        metavar="X",
        help="with --head: weight of the variance between networks of different patients in the loss (default: 0)",
    )
    parser.set_defaults(command="adapt")


def _add_maps(parser: argparse.ArgumentParser, *, hidden: bool = False) -> None:
    """Add the options of `voxout evaluate`; hidden ones for its old form, ``voxout score --maps``."""

    def shown(text: str) -> str:
        return argparse.SUPPRESS if hidden else text

    parser.add_argument(
        "--maps",
        type=_path_text,
        required=not hidden,
        metavar="DIR",
        help=shown("anomaly maps (NIfTI), higher = more anomalous"),
    )
    parser.add_argument("--masks", type=_path_text, metavar="DIR", help=shown("lesion masks, on the grids of the maps"))
    parser.add_argument(
        "--brain-masks",
        type=_path_text,
        metavar="DIR",
        help=shown("brain masks; without them, all voxels are scored"),
    )
    parser.add_argument(
        "--cohort",
        dest="participants",
        type=_path,
        metavar="CSV",
        help=shown("table with subject_id, group, site and age"),
    )
    parser.add_argument(
        "--healthy",
        nargs="+",
        default=[],
        metavar="ID",
        help=shown("healthy subjects, as ids or 'patterns*'; they set the threshold and need no lesion mask"),
    )
    parser.add_argument(
        "--out", dest="scores", required=not hidden, type=_path, metavar="DIR", help=shown("folder for the scores")
    )


def _add_runs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--runs",
        nargs="+",
        default=[],
        type=_named_path,
        metavar="[NAME=]RUN",
        help="reference runs (folder or scores.json) whose scores the report shows for comparison",
    )


def _named_path(text: str) -> tuple[str, Path]:
    name, equals, path = text.partition("=")
    return (name, _path(path)) if equals else ("", _path(text))


def _path(text: str) -> Path:
    try:
        return given_path(text)
    except UserError as error:  # argparse adds the name of the argument
        raise argparse.ArgumentTypeError(str(error)) from error


def _path_text(text: str) -> str:
    """Return a path as it is written: it may contain ``{id}``, and ``~/`` is not ``~``."""
    _path(text)
    return text


def add_shared(parser: argparse.ArgumentParser, *, fits: bool = True) -> None:
    """Add the options of all stages; those of the fit are hidden for a command that applies a fitted model."""

    def shown(text: str) -> str:
        return text if fits else argparse.SUPPRESS

    parser.add_argument(
        "--preset", metavar="NAME", help=shown("predefined settings: default, fast, fine-1mm, paper-1mm or demo")
    )
    _add_settings(parser)
    parser.add_argument(
        "--seeds",
        type=at_least_one,
        metavar="N",
        help=shown("train N encoders with N seeds; the map is their mean (no effect with --preset fast)"),
    )
    parser.add_argument(
        "--device",
        default="auto",
        metavar="NAME[,NAME]",
        help="cpu, cuda, cuda:1, ... (default: GPU if available); several, as in cuda:0,cuda:1, train together",
    )
    parser.add_argument(
        "--cluster",
        choices=("local", "slurm", "pbs", "lsf", "sge"),
        default="local",
        help="process subjects in jobs of this queueing system; settings: cluster (docs/servers.md)",
    )
    parser.add_argument(
        "--scheduler", metavar="ADDRESS", help="process subjects with a running Dask scheduler, as tls://node7:8786"
    )
    _add_work(parser)


def _add_settings(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", type=_path, metavar="YAML", help="file of settings; others keep their defaults")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="change a setting; repeatable")
    parser.add_argument("--seed", type=whole_number, help="random seed; the same seed gives the same result")


def _add_work(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--jobs", type=at_least_one, metavar="N", help="subjects processed in parallel (default: one per core)"
    )
    parser.add_argument("--dry-run", action="store_true", help="show what would be done, and why")
    parser.add_argument("-v", "--verbose", action="store_true", help="print one line per subject")
    parser.add_argument("-q", "--quiet", action="store_true", help="print only results and errors")


def whole_number(text: str) -> int:
    """Parse an integer of at most 18 digits; `int` also accepts ``1_0`` and digits of other scripts."""
    if not re.fullmatch("-?[0-9]{1,18}", text):
        raise argparse.ArgumentTypeError(f"found {text}, expected an integer of at most 18 digits")
    return int(text)


def at_least_one(text: str) -> int:
    """Parse an integer of at least 1."""
    if not re.fullmatch("[0-9]{1,18}", text) or int(text) < 1:
        raise argparse.ArgumentTypeError(f"found {text}, expected an integer of at least 1")
    return int(text)
