"""Prepared interactions, streamed as batches."""
