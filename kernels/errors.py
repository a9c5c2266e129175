"""What a kernel call can be refused for; both are ValueErrors whose message names the value and the valid choices."""

from __future__ import annotations


class InvalidRequest(ValueError):
    """Tensors or specifications that do not fit together or hold what they must not."""


class UnsupportedRequest(InvalidRequest):
    """A valid request that the chosen backend cannot compute, or that none can; the message holds each one's reason."""
