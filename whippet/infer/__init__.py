"""Answering: sampling, generation, a loaded model."""
