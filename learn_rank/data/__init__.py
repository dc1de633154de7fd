"""Raw logs in, canonical tables out; and readers of those tables."""
