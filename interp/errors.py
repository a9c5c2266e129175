"""Every error a user can meet, on one page.

WorkbenchError                      exit code 1
├── BadInput (ValueError)           exit code 2: the request itself cannot be served
│   ├── UnknownSite                 no such site, layer or head in this model
│   ├── SiteUnavailable             the site exists elsewhere; this model cannot offer it, and why
│   ├── UnsupportedArchitecture     where the parts of this model are could not be established
│   ├── ModelNotLoadable            missing folder, no tokenizer, corrupt or pickled weights
│   ├── PromptTooLong               more tokens than the model has positions
│   ├── MemoryBudgetExceeded        the plan would hold more bytes than allowed
│   ├── MaskMismatch                a head mask made for another model
│   ├── UnreadableFile              a file that does not hold what it should
│   └── UnwritableOutput            nothing can be written there
├── SiteDidNotFire                  a planned read or edit that the forward pass never reached
├── RemoteUnavailable               a remote service without a key, without an answer, or with a refusal
└── NoTestPassed                    the analysis ran, and no test passed its gate
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class WorkbenchError(Exception):
    """Base of every error raised on purpose; the message is a sentence to act on."""

    exit_code = 1


class BadInput(WorkbenchError, ValueError):
    """The request names something that is not there or cannot be."""

    exit_code = 2


class UnknownSite(BadInput):
    """A site, layer or head that the model does not have."""


class SiteUnavailable(BadInput):
    """A site that this family or backend cannot offer, with the reason."""

    def __init__(self, site: object, reason: str) -> None:
        super().__init__(f"{site} is not available: {reason}")
        self.site = str(site)
        self.reason = reason


class UnsupportedArchitecture(BadInput):
    """A model whose parts could not be found or did not obey the site equations."""


class ModelNotLoadable(BadInput):
    """A model folder, hub id or object that cannot be loaded."""


class PromptTooLong(BadInput):
    """A prompt (with what is to be generated) longer than the model's context."""


class MemoryBudgetExceeded(BadInput):
    """The plan would keep more bytes than its budget."""


class MaskMismatch(BadInput):
    """A head mask whose model is not the one at hand."""


class UnreadableFile(BadInput):
    """A file that is missing, corrupt or of another format."""


class UnwritableOutput(BadInput):
    """An output path that cannot be written."""


class SiteDidNotFire(WorkbenchError):
    """A planned read or edit that the forward pass never reached."""


class RemoteUnavailable(WorkbenchError):
    """A remote service that cannot be used: no key for it, no answer from it, or a run that failed there."""


class NoTestPassed(WorkbenchError):
    """The analysis ran to its end, and no test passed its gate."""


def choose(value: object, valid: Iterable[object]) -> str:
    """Half a sentence naming the valid choices, and the nearest one when `value` looks like a slip."""
    options = [str(v) for v in valid]
    near = difflib.get_close_matches(str(value), options, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"{hint}valid: {', '.join(options)}"
