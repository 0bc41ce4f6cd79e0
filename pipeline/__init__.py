"""Stages, configuration, records, parallel engine and command line.

`workflow.runner` runs check, prepare, extract, train, fit, map, score and report, in this order. Each stage writes a
record; a stage whose settings and inputs have not changed is skipped.
"""
