"""``python -m voxout.pipeline.cli``."""

from .entry import start

start()
