"""Forward passes written out by hand: the oracle of the tracing tests.

Nothing here is shared with the code under test: no hooks, no attention kernel, only the weights and norms of the
Hugging Face model, its own rotary function and, where there are experts, its own mixture of them. `test_reads.py`
first proves that each computes what the model computes.
"""

from tests.tracing.handwritten.model import HandModel

__all__ = ["HandModel"]
