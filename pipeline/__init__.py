"""The stages, in order, over a cohort: configuration, records, parallel engine, command line.

`workflow.runner` runs check, prepare, extract, train, fit, map, score and report. Each stage writes a record; a stage
whose settings and inputs have not changed is skipped.
"""
