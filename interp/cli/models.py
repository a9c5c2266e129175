"""Loading the model a command works on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from interp.tracing.model import Model


def load_model(name: str, **options: Any) -> Model:
    """`interp.load` with the options that were given, and without transformers' own progress bars."""
    from transformers.utils import logging

    import interp

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    return interp.load(name, **{option: value for option, value in options.items() if value is not None})
