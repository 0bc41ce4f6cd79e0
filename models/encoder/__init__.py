"""Patch encoder: network, training and dense inference."""
