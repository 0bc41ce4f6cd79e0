"""Detection-limit certificate: how small and how faint a lesion may be to be found by a model in its own site."""
