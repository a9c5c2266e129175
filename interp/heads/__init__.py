"""Attention heads: scores, masks of them, and the files other tools read."""
