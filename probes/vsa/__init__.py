"""The hyperdimensional probe: which concepts are bound to which in a hidden state, read out as a hypervector.

After "Hyperdimensional Probe: Decoding LLM Representations via Vector Symbolic Architectures" (arXiv 2509.25045), built
from its description. Beyond it: decoders that take their queries from the text alone, baselines on the same data,
splits by pair, and a causal check.
"""
