"""Measured figures that `plan` computes with, each with its source.

Times are CPU seconds of one hardware thread of an AMD EPYC, both threads of a core busy, on which `machine_speed`
takes `PROBE_S`. "Fit, measured" is `python benchmarks/plan.py --fit OUT` on 20 prepared heads at 2 mm.
"""

PROBE_S = 0.106
"""Of `machine_speed.probe_s`."""

BRAIN_ML, GRID_ML = 1886.5, 9226.0
"""Brain mask and whole grid of the template; the same at every resolution within 0.1 %."""
NATIVE_BRAIN_ML = 1400.0
"""Brain of a head in native space, typical of adults (docs/quality.md)."""

# -- CPU seconds -----------------------------------------------------------------------------------------------------
CHECK_S = 0.25
"""Per head; 10 heads of 1 mm in 2.3 s."""
PREPARE_S, PREPARE_S_AT_1_MM = 28.0, 9.0
"""Per head: a constant part, since the registration works at its own spacing, and one that grows with the voxels of the
template grid. 29 s at 2 mm (docs/results.md#preparation), 37 s at 1 mm (10 heads, jobs 1)."""
EXTRACT_US = 0.95
"""Per head and voxel: 2.6 s for 12 heads at 2 mm."""
TRAIN_STEP_MS_PER_VOXEL = 1.4
"""Per step of 1024 patches and voxel of a patch: 35 ms with 27 voxels (docs/method.md#cost), 0.21 to 0.26 s with 125
(docs/method.md#at-1-mm, and 120 steps on 7 controls)."""
CONTRAST_STEP_MS_PER_VOXEL = 1.6
"""What the contrast with edits adds to a guided step, per voxel of a patch: 0.2 s with 125."""
EDITED_COPY_US = 0.65
"""Per voxel of an edited copy of a control: 0.15 s at 2 mm."""
FIT_US = {
    "ocsvm": 11.5,
    "mahalanobis": 8.0,
    "intensity": 1.8,
    "derived_features": 3.4,
    "patches": 5.0,
    "prototypes": 4.0,
    "derived map": 1.8,
    "learned": 3.6,
}
"""Per scorer, training control or mirrored copy, and voxel, with its cross-validation; of `learned`, per edited copy of
it. 97 s for the four scorers of the default without `learned`, 20 controls at 2 mm, shared as when each is fitted alone
(fit, measured). `learned`, with eight edited copies of each control: 135 s for 20 controls at 2 mm, measured alike."""
ENCODE_US = 0.078
"""More with latents, per voxel of a patch: patches have 27 voxels in the default, 125 at 1 mm."""
FIT_SERIAL = 0.51
"""Share of the fit that runs on one thread: with two, 219 s with 60 controls at 2 mm (docs/method.md#cost), 602 s with
15 controls at 1 mm (docs/method.md#at-1-mm)."""
MAP_S, MAP_US = 0.6, 8.5
"""Per scan, and per voxel: 2.6 s at 2 mm, 16 s at 1 mm (docs/method.md#cost, #at-1-mm)."""
MAP_LEARNED_US = 12.7
"""More per voxel with the scorer `learned`: 3 s at 2 mm."""
SCORE_US = 3.4
"""Per voxel of the brain in native space: 16 s for 20 scans of 2 mm (docs/method.md#cost)."""
REPORT_S, PAGE_S, PAGE_US = 8.0, 2.5, 6.0
"""The page of the cohort, and a page of a subject."""

# -- memory, GB ------------------------------------------------------------------------------------------------------
MAIN_GB = 0.8
WORKER_GB = 0.8
"""Of a worker process that has loaded the libraries; workers stay until the end of a command."""
PREPARE_WORKER_GB = 1.45
"""At most 1.5 GB per job (docs/results.md#preparation)."""
FIT_BYTES = 1650
"""Per voxel: 5.2 GB with 15 controls at 1 mm (docs/method.md#at-1-mm). Without `learned`, it does not
grow with the controls (docs/results.md#fit)."""
LEARNED_VOXELS = 4400
"""Voxels that are drawn from an edited copy of a control."""

# -- files: bytes ----------------------------------------------------------------------------------------------------
FLOAT_MAP_BYTES = 3.9
"""Per voxel of the brain, of a packed float32 image (7.1 MB at 1 mm)."""
MASK_BYTES = 0.12
WARP_BYTES = 24.6
"""Per voxel of the brain on the grid of the registration: both directions, 5.8 MB at 2 mm."""
PICTURE_BYTES = 180_000
SUPPORT_VECTORS_MORE = 4.3
"""Support vectors of a detector beyond nu times the controls (5.7 of 14 with nu 0.1)."""
PROTOTYPES_BYTES = 656
"""Per block: 16 prototypes of 8 components, and a packed matrix."""
BLOCK_MM, FULL_BLOCKS = 4.0, 0.93
"""Least edge of a block, and share of its voxels that lie in the brain: 31,467 blocks of 8 voxels at 2 mm."""
SAMPLED_VOXELS = 50_000
"""Voxels at which the whole-brain components are stored."""
PAGE_BYTES, PAGE_BYTES_PER_VOXEL = 1_300_000, 4.0
SCORES_BYTES = 1_200_000
"""Counts and curves of one scan."""
