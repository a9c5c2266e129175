"""Circuits: the heads behind a behaviour, how they were found, and how well they explain it."""
