"""Metrics, figures and reports from anomaly maps and lesion masks.

Independent of the models: maps of any method can be scored. Every metric is reported with its mask and space.
"""
