"""Titles of the stages, in the order they run. A module of its own, so that ``--help`` imports nothing else."""

STAGE_TITLES: dict[str, str] = {
    "check": "check all scans of the cohort and list all problems",
    "prepare": "skull-strip, bias-correct, register and normalise every scan",
    "extract": "standardise the intensities and gather the controls in one array",
    "train": "train the patch encoder, guided by a one-class SVM",
    "fit": "fit and calibrate the scorers on the training controls",
    "map": "write anomaly maps of patients and held-out controls",
    "score": "score the maps against the lesion masks",
    "report": "write the HTML report",
}
