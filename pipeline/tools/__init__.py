"""Tools that need no run: scores of any maps, volumes brought to native space."""
