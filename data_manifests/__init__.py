"""What data there is, how it is read, and how every output is named.

The lowest floor of voxout: nothing here knows about models or stages. A lab's CSV or BIDS folder becomes a
`Manifest` of `SubjectRecord`s; every array travels as a `Volume`, together with its grid.
"""
