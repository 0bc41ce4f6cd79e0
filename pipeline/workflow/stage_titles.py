"""What each stage does, in one line, in the order they run. Kept apart so that ``--help`` imports nothing else."""

STAGE_TITLES: dict[str, str] = {
    "check": "open every scan of the cohort once and list all problems",
    "prepare": "strip, correct, register and normalise every subject",
    "extract": "stack the controls on one grid",
    "train": "train the patch encoder, guided by a one-class SVM",
    "fit": "fit the readers on the training controls, and calibrate them",
    "map": "write anomaly maps of patients and held-out controls",
    "score": "score the maps against the lesion masks",
    "report": "write the HTML report",
}
