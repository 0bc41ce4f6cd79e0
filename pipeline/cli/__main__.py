"""``python -m voxout.pipeline.cli``."""

import sys

from .main import main

sys.exit(main())
