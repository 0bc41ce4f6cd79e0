"""Commands that need no complete run: scores of any maps, volumes in native space."""
