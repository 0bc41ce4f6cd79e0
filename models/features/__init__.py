"""Voxel-wise features: what they are made of, how they are stored and whitened."""
