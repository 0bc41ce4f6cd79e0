"""Reading of manifests, BIDS datasets and images, and names of all output files.

The lowest layer of voxout: it does not depend on models or pipeline stages. A CSV file or BIDS folder is read into a
`Manifest` of `SubjectRecord`s. Images are read into a `Volume`: an array and its grid.
"""
