"""The evaluation engine against scikit-learn and slow references: agreement, time, memory, robustness.

    python benchmarks/evaluation.py            # some 5 minutes and 8 GB: scikit-learn needs both
    python benchmarks/evaluation.py --quick    # a tenth of the voxels

Scans are synthetic: 3-D normal noise with lesions of 1 to 20,000 voxels that stand out by two standard deviations.
Times are CPU time of one process; memory is what comes on top of one subject's map, mask and labels.
"""

import argparse
import gc
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from sklearn import metrics
from voxout.data_manifests.grid import Grid
from voxout.data_manifests.volume import Volume
from voxout.evaluation import voxel_metrics as vm
from voxout.evaluation.cohort_measures import voxel_measures
from voxout.evaluation.intervals import Estimate, resample_subjects
from voxout.evaluation.lesions import find_lesions
from voxout.evaluation.score_subject import SubjectCurves, SubjectScores
from voxout.evaluation.lesion_metrics import ClusterCurve, LesionOverlaps

SHAPE = (128, 128, 122)  # 1,998,848 voxels: 50 of them make 10^8
GRID = Grid(SHAPE, np.eye(4))
