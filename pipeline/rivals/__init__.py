"""Comparison of voxout with other methods on the scans of a run."""
