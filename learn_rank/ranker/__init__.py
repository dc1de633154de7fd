"""The ranker: trainable TorchRec tables, frozen LEARN vectors through the adaptor, and a backbone.

Read `model.py` first: tables, adaptor and backbone of one batch, and the loss, to which `adaptor/loss.py` gives the CVR
loss. Then `training/train.py`, the loop.

    data       prepared interactions, streamed as batches
    backbones  what turns features into logits, one file each
    tables     trainable rows and frozen vectors: their sizes, where they lie, lookups
    training   the loop, its checkpoints, how it resumes
    outputs    what a trained ranker leaves: predictions, a folder to score with, LEARN columns
"""
