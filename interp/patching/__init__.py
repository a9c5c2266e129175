"""Patching: many interventions, each computed only where it can matter, and the analyses made of them."""
