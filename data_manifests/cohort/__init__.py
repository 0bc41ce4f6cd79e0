"""A lab's cohort: the manifest or BIDS folder, its subjects, their split, and where outputs are written."""
