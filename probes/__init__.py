"""Probes: what can be read linearly, structurally or symbolically from hidden states."""
