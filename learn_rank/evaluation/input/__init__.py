"""What is evaluated: checked batches of predictions, and the segments of their users and items."""
