"""Confounds: covariates and whole-brain components, regressed out of the features."""
