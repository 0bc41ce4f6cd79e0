"""Settings of a run, presets, and what differs between two runs."""
