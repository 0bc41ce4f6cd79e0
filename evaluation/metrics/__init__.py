"""Metrics on arrays: voxel-wise, per lesion and per cluster; p-values; bootstrap intervals."""
