"""Preference alignment (PAL): content vectors and histories -> 64-d user and item embeddings."""
