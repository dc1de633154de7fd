"""LEARN embeddings for CTR/CVR ranking: train with them, import them, measure what they do."""

__version__ = "0.2.0"
