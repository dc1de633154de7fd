"""Content extraction (CEX): item texts -> frozen content embeddings."""
