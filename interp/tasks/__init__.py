"""Prompt sets with answers, distractors and named token positions, and the text that ships."""
