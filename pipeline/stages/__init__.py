"""Stages of a run, from scans to report."""
