"""Cohorts: manifests and BIDS datasets, their subjects, the split of the controls, and output paths."""
