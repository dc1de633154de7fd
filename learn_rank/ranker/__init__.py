"""The ranker: trainable TorchRec tables, frozen LEARN vectors through the adaptor, and a backbone."""
