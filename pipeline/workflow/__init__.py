"""How stages are run: engine, records, replacement of outputs, console."""
