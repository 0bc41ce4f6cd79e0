"""Where an output comes from: `voxout describe`."""
