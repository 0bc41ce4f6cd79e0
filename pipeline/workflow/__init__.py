"""Execution of stages: engine, records, replacement of outputs, console."""
