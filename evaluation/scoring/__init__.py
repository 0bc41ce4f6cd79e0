"""Scoring of anomaly maps against lesion masks, for single subjects and cohorts."""
