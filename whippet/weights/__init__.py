"""Checkpoints on disk: names, formats, loading."""
