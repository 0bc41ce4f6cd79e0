"""Metrics on arrays: voxels, lesions, clusters, p-values, bootstrap."""
