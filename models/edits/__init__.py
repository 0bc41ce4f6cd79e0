"""Synthetic anomalies: random edits of the training controls, to learn from."""
