"""Trainable tables and frozen vectors: their sizes, where they lie, and lookups in them."""
