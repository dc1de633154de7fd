"""Frozen vectors on disk: written once, memory-mapped, looked up by id, never trained."""
