"""The bundled model's shape, and its forward pass for training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from interp.pocket.tokenizer import CONTEXT

LAYERS, WIDTH, HEADS, KV_HEADS, MLP_WIDTH = 4, 256, 8, 4, 640


@dataclass(frozen=True)
class Look:
    """Heads that begin by looking `back` tokens back: the query heads of some key/value groups of some layers."""

    layers: tuple[int, ...]
    groups: tuple[int, ...]
    back: int
    size: float


# One pair of heads in the first layer looks at the previous token: heads that match and copy are built on such heads,
# which otherwise form late or, in a training as short as this one, never. Most others begin by looking at their own
# token, so that what the later layers read is the token itself and copying is taken up by few heads and not by every
# head a little.
LOOKS = (
    Look(layers=(0,), groups=(0,), back=1, size=6.0),
    Look(layers=(0,), groups=(1, 2, 3), back=0, size=4.0),
    Look(layers=(1, 2, 3), groups=(1, 2, 3), back=0, size=3.0),
)


def build_model(tokenizer: PreTrainedTokenizerFast, seed: int, width: int = WIDTH) -> LlamaForCausalLM:
    """A freshly initialised model, its heads with their starts (`LOOKS`)."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=MLP_WIDTH * width // WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        attention_bias=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        attn_implementation="sdpa",
    )
    model = LlamaForCausalLM(config)
    start_looking(model)
    return model


def start_looking(model: LlamaForCausalLM) -> None:
    """Set query and key biases so that heads begin with a place to look at, whatever the tokens are (`LOOKS`).

    Rotary embedding turns queries and keys by their positions. With a key bias u, and u turned back by d positions
    as the query bias, the score is greatest d tokens back.
    """
    angles, groups = model.model.rotary_emb.inv_freq, model.config.num_key_value_heads
    ahead = torch.cat([torch.ones_like(angles), torch.zeros_like(angles)])
    for look in LOOKS:
        back = torch.cat([torch.cos(look.back * angles), -torch.sin(look.back * angles)])
        for layer in look.layers:
            attn = model.model.layers[layer].self_attn
            for projection, direction in ((attn.q_proj, back), (attn.k_proj, ahead)):
                biases = projection.bias.data.view(groups, -1, len(direction))
                biases[list(look.groups)] = look.size * direction


@contextmanager
def dropped_heads(model: LlamaForCausalLM, share: float, generator: torch.Generator) -> Iterator[None]:
    """Within the block, every sequence goes without a random `share` of the heads that began at their own token.

    So the model comes to need none of them alone, and what it finds again it finds through the others. Layers after
    the first only: its heads feed all others.
    """
    config, handles = model.config, []
    own = [group for look in LOOKS if look.back == 0 and 0 not in look.layers for group in look.groups]
    spare = torch.zeros(config.num_key_value_heads, 1).index_fill(0, torch.tensor(own), 1.0)
    spare = spare.expand(-1, config.num_attention_heads // config.num_key_value_heads).flatten()

    def drop(_module: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
        z = args[0]
        kept = 1 - spare * (torch.rand(len(z), len(spare), generator=generator) < share)
        return (z * kept.to(z).repeat_interleave(z.shape[-1] // len(spare), dim=1)[:, None],)

    if share:
        handles = [layer.self_attn.o_proj.register_forward_pre_hook(drop) for layer in model.model.layers[1:]]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def hidden_states(model: LlamaForCausalLM, ids: Tensor, positions: Tensor) -> Tensor:
    """The normalised last hidden states [B, T, D] of full causal attention at the given positions.

    The model's own forward would take a jump in the positions for the start of another sequence.
    """
    x = model.model.embed_tokens(ids)
    rotary = model.model.rotary_emb(x, position_ids=positions)
    for layer in model.model.layers:
        x = layer(x, attention_mask=None, position_embeddings=rotary)
    return model.model.norm(x)
