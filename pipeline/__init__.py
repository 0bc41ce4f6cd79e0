"""The stages, in order, over a cohort: configuration, records, parallel engine, command line.

`run` is the main job: check, prepare, extract, train, fit, map, score, report. Each stage writes a record; a stage
whose settings and inputs have not changed is skipped.
"""
