"""The functions of ``import voxout`` on scans and models: what the command line does, returning objects."""

import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..data_manifests.cohort.manifest import read_manifest
from ..data_manifests.cohort.output_paths import OutputFolder
from ..data_manifests.cohort.subject import Manifest
from ..data_manifests.errors import plain_errors
from ..data_manifests.user_paths import given_path
from .config.changed_settings import Settings, as_overrides
from .config.config import read_settings, require_settings_of_model
from .config.own_commands import require_own_commands, with_commands_of
from .run import RunOptions, run_pipeline
from .workflow.console import Console
from .workflow.device import choose_device
from .workflow.ownership import claim
from .workflow.runner import Run

if TYPE_CHECKING:
    from .model.anomaly_model import AnomalyModel

_UNTIL_FIT = ("check", "prepare", "extract", "train", "fit")


def read_cohort(path: str | Path) -> Manifest:
    """Read a cohort: a CSV file with one row per scan, or a BIDS folder.

    Parameters
    ----------
    path : str or Path

    Returns
    -------
    Manifest
        Its ``controls`` and ``patients`` are tuples of `SubjectRecord`; ``notes`` lists what was ignored.

    Raises
    ------
    UserError
        With all problems at once.

    Examples
    --------
    >>> cohort = voxout.read_cohort("cohort.csv")                                         # doctest: +SKIP
    >>> len(cohort.controls), len(cohort.patients)                                        # doctest: +SKIP
    (60, 12)
    """
    with plain_errors():
        return read_manifest(given_path(path, "path"))


def fit(
    cohort: Manifest | str | Path,
    out: str | Path,
    *,
    preset: str | None = None,
    config: str | Path | None = None,
    settings: Settings = (),
    seed: int | None = None,
    device: str = "auto",
    jobs: int | None = None,
    verbose: bool = True,
) -> "AnomalyModel":
    """Fit a model of normal anatomy to the controls of a cohort.

    Does what ``voxout run`` does up to the stage fit: checks every scan, prepares it, trains the encoder and fits the
    detectors. What an earlier call has completed is not done again.

    Parameters
    ----------
    cohort : Manifest, str or Path
    out : str or Path
        Output folder of the run.
    preset : str, optional
        Such as ``"fast"``, which trains no encoder.
    config : str or Path, optional
        A YAML file of settings.
    settings : mapping or sequence of str, optional
        Single settings, such as ``{"models.detector.nu": 0.05}``.
    seed : int, optional
    device : str
        ``"auto"``, ``"cpu"``, ``"cuda"``, ..., or several GPUs that train together, as in ``"cuda:0,cuda:1"``.
    jobs : int, optional
        Subjects worked on at once; one per core by default.
    verbose : bool
        Print a line per stage.

    Returns
    -------
    AnomalyModel

    Raises
    ------
    UserError
        A scan, a setting or a folder cannot be used.
    """
    from .model.anomaly_model import AnomalyModel

    with plain_errors():
        manifest, path = _given_cohort(cohort, "cohort")
        options = RunOptions(
            manifest,
            given_path(out, "out"),
            _UNTIL_FIT,
            cohort=path,
            config=given_path(config, "config") if config is not None else None,
            preset=preset,
            settings=as_overrides(settings),
            seed=seed,
            device=device,
            jobs=jobs,
            command="voxout.fit",
        )
        run, _ = run_pipeline(options, lambda: _console(options.out, verbose))
        model = AnomalyModel.load(run.out, run.config, run.device).with_stored_threshold(run.out)
        return model if model.threshold is not None else _with_null_threshold(model, run)


def _given_cohort(cohort: Manifest | str | Path, name: str) -> tuple[Manifest, Path | None]:
    """Return the subjects of an argument, and its path if it is one."""
    if isinstance(cohort, Manifest):
        return cohort, None
    path = given_path(cohort, name)
    return read_manifest(path), path


def load_model(
    folder: str | Path,
    *,
    device: str = "auto",
    settings: Settings = (),
) -> "AnomalyModel":
    """Load a fitted model; every file is compared with the model's record first.

    Parameters
    ----------
    folder : str or Path
        Output folder of the run that fitted it, a copy of its ``encoder``, ``detectors`` and ``records``, or a packed
        model (``voxout model pack``).
    device : str
        ``"auto"``, ``"cpu"``, ``"cuda"``, ...
    settings : mapping or sequence of str, optional
        Settings of ``evaluation``, and ``preprocessing.brain_extraction.command`` for a model whose scans were
        stripped by a program of the site: no model brings a program along.

    Returns
    -------
    AnomalyModel

    Raises
    ------
    UserError
        No model, a damaged or changed one, or settings that differ from those it was fitted with.
    """
    from .model.anomaly_model import AnomalyModel
    from .model.unpack import model_folder
    from .model.whole_model import require_whole_model

    # What is loaded does not need the temporary folder of a packed model.
    with plain_errors(), model_folder(given_path(folder, "folder")) as model:
        overrides = as_overrides(settings)
        fitted = require_whole_model(model)
        given = read_settings(saved=fitted, overrides=overrides)
        config = given.config
        require_own_commands(config, given.named, model.fitted_config)
        require_settings_of_model(config, with_commands_of(config, fitted.config))
        return AnomalyModel.load(model, config, choose_device(device)).with_stored_threshold(model)


def adapt_scanner(
    model: str | Path,
    controls: Manifest | str | Path,
    out: str | Path,
    *,
    settings: Settings = (),
    device: str = "auto",
    jobs: int | None = None,
    verbose: bool = True,
) -> "AnomalyModel":
    """Adapt a fitted model to another scanner: its calibration and its threshold.

    Parameters
    ----------
    model : str or Path
        Folder of a model, or a packed one; it is not changed.
    controls : Manifest, str or Path
        Healthy controls of the scanner: at least 5 persons, better 20 or more.
    out : str or Path
        Folder of the adapted model.
    settings : mapping or sequence of str, optional
        Settings of ``evaluation``.
    device : str
    jobs : int, optional
        Subjects worked on at once; one per core by default.
    verbose : bool
        Print a line per stage.

    Returns
    -------
    AnomalyModel

    Raises
    ------
    UserError
        Patients among the controls, too few controls, or a model, a setting or a folder that cannot be used.
    """
    from .adapt import adapt_scanner as adapt
    from .model.unpack import model_folder
    from .model.whole_model import require_whole_model

    with plain_errors():
        place = given_path(out, "out")
        manifest, path = _given_cohort(controls, "controls")
        with model_folder(given_path(model, "model"), place) as given:
            require_whole_model(given)
            options = RunOptions(
                manifest,
                place,
                (),
                cohort=path,
                model=given.root,
                settings=as_overrides(settings),
                device=device,
                jobs=jobs,
                command="voxout.adapt_scanner",
            )
            adapt(options, lambda: _console(place, verbose))
        return load_model(place, device=device, settings=settings)


def adapt(
    model: str | Path,
    labelled: Manifest | str | Path,
    out: str | Path,
    *,
    head: bool = False,
    variance_weight: float = 0.0,
    settings: Settings = (),
    device: str = "auto",
    jobs: int | None = None,
    verbose: bool = True,
) -> "AnomalyModel":
    """Adapt a fitted model to a few patients with lesion masks: how its scorers are combined, and its threshold.

    To adapt it to another scanner with healthy scans, see `adapt_scanner`.

    Parameters
    ----------
    model : str or Path
        Output folder of the run that fitted it; it is not changed.
    labelled : Manifest, str or Path
        Patients with lesion masks, at least 2 persons; a gain can be shown with 6 or more.
    out : str or Path
        Folder of the adapted model. ``adaptation/adaptation.json`` in it says what was gained.
    head : bool
        Also train a small network on the scorers' outputs and the latents (experimental).
    variance_weight : float
        With `head`: weight of the variance between networks of different patients in the loss.
    settings : mapping or sequence of str, optional
        Settings of ``evaluation``.
    device : str
    jobs : int, optional
        Subjects worked on at once; one per core by default.
    verbose : bool
        Print a line per stage.

    Returns
    -------
    AnomalyModel
        Its ``without_labels`` is the model before.

    Raises
    ------
    UserError
        Labels that cannot be learnt from, or a model, a setting or a folder that cannot be used.
    """
    from .adapt import adapt_to_labels
    from .model.unpack import model_folder
    from .model.whole_model import require_whole_model

    with plain_errors():
        place = given_path(out, "out")
        manifest, path = _given_cohort(labelled, "labelled")
        with model_folder(given_path(model, "model"), place) as given:
            require_whole_model(given)
            options = RunOptions(
                manifest,
                place,
                (),
                cohort=path,
                model=given.root,
                settings=as_overrides(settings),
                device=device,
                jobs=jobs,
                command="voxout.adapt",
            )
            adapt_to_labels(options, lambda: _console(place, verbose), head=head, variance_weight=variance_weight)
        return load_model(place, device=device, settings=settings)


def _with_null_threshold(model: "AnomalyModel", run: Run) -> "AnomalyModel":
    """Set the threshold on the training controls, as the stage map does."""
    from .model.null_threshold import null_threshold

    point = null_threshold(run)
    if point is None or not math.isfinite(point.threshold):
        return model
    return replace(model, operating_point=point, why_no_threshold="")


def _console(out: Path, verbose: bool) -> Console:
    claim(out)
    return Console(OutputFolder(out).log, verbosity=0 if verbose else -1)
