"""Worker processes on this machine or on the nodes of a cluster, which execute the calls of the engine."""
