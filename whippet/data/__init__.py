"""From files to batches: the first six arrows of the walk."""
