"""Preference alignment (PAL): content vectors and histories -> 64-d user and item embeddings.

Read `train.py` first, the loop. `objectives` has a file per objective with its sampling (Eq. 1 of the paper is in
`all_action.py`); the losses are in `loss.py`, the network in `towers.py` and `transformer.py`, which labels a tower may
learn from in `until.py` and `halves.py`, what follows training in `retrieval.py` (metrics) and `export.py` (vectors).
"""
