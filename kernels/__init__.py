"""Fused attention with head gates, head plans and statistics; depends on torch and on nothing of ours."""
