"""Anomaly scores, their calibration, and the ensemble that makes a map."""
