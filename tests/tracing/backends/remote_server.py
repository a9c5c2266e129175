# ruff: noqa: E402
"""The far end of a remote run, as a program of its own: nnsight and a model, and nothing of this project.

Reads requests as `torch.save`d dictionaries from stdin, each after its length, and answers likewise.
"""

from __future__ import annotations

import importlib.util
import io
import json
import struct
import sys
import traceback
from pathlib import Path
from typing import Any

sys.path[:] = [entry for entry in sys.path if not (Path(entry) / "interp").is_dir()]
assert importlib.util.find_spec("interp") is None, "a server has never heard of this project"

import torch
import zstandard
from nnsight import TransformersModel
from nnsight.schema.request import RequestModel
from nnsight.tracing.tracer import _saves, dec, inc
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch.nn.modules.module import register_module_forward_hook
from transformers import PreTrainedTokenizerFast

torch.set_num_threads(1)
models: dict[str, TransformersModel] = {}


def model_of(key: str, folders: dict[str, str]) -> TransformersModel:
    if key not in models:
        words = Tokenizer(WordLevel({"a": 0, "b": 1}, unk_token="a"))
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="a", pad_token="b", mask_token="b")
        name = json.loads(key.partition(":")[2])
        folder = folders[name["repo_id"]]
        models[key] = TransformersModel(folder, task=name["task"], tokenizer=tokenizer, dispatch=True)
    return models[key]


def run(request: dict[str, Any]) -> dict[str, Any]:
    """Do what the service does with one request: rebuild the trace, run it on the model, send what it saved.

    For the tests also how many modules finished computing.
    """
    routing = request["routing"]
    model = model_of(routing["model_key"], request["folders"])
    model._remoteable_set_env(routing["env"])
    tracer = RequestModel.deserialize(
        request["blob"], model._remoteable_persistent_objects(), compress=routing["compress"]
    )
    frame, computed = tracer.info.frame, []
    count = register_module_forward_hook(lambda *_: computed.append(None))
    inc()
    try:
        tracer.execute(tracer.info.code)
        saved = {name: value for name, value in frame.f_locals.items() if id(value) in _saves()}
    finally:
        dec()
        count.remove()
    buffer = io.BytesIO()
    torch.save(saved, buffer)
    return {"result": zstandard.ZstdCompressor().compress(buffer.getvalue()), "computed": len(computed)}


def main() -> None:
    pipe_in, pipe_out = sys.stdin.buffer, sys.stdout.buffer
    sys.stdout = sys.stderr
    while head := pipe_in.read(8):
        request = torch.load(io.BytesIO(pipe_in.read(struct.unpack("!Q", head)[0])), weights_only=False)
        try:
            answer = run(request)
        except Exception as error:  # noqa: BLE001
            answer = {"error": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()}
        buffer = io.BytesIO()
        torch.save(answer, buffer)
        pipe_out.write(struct.pack("!Q", buffer.tell()) + buffer.getvalue())
        pipe_out.flush()


main()
