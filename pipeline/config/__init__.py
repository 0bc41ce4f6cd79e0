"""Settings of a run, presets, and differences between two runs."""
