"""One-class SVM: exact dual, guidance loss, and one detector per voxel."""
