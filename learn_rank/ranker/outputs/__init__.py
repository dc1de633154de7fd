"""What a trained ranker leaves: predictions, a folder to score with, LEARN columns of a log."""
