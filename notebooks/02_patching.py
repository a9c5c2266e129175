# %% [markdown]
# # Where does the name travel?
#
# "When Mary and John went to the shop, John gave a book to" is followed by Mary. To say so, a model must notice which
# name was said twice, and bring the other one to the end of the sentence. Activation patching shows where each of the
# two is on its way: run the sentence with another name in one place, put one activation of the original run back, and
# see how much of the right answer returns.
#
# The task is indirect object identification (Wang et al. 2022), in the kinds of sentences that `pocket` was trained
# on, a model organism that does it nearly without error. IO is the name to be said, S1 and S2 the two mentions of the
# other one, `end` the last token.

# %%
import interp
from interp.tasks.ioi import ioi_prompts

model = interp.load("pocket")
twice = ioi_prompts(model.tokenizer, 32, style="pocket", corruption="S2->IO")
name = ioi_prompts(model.tokenizer, 32, style="pocket", corruption="IO->RAND")
twice

# %% [markdown] tags=["another-model"]
# **With GPT-2 or Llama** change this cell: those models know the general sentences. Names that the tokenizer splits
# are left out by themselves.
#
# ```python
# model = interp.load("openai-community/gpt2")  # or "meta-llama/Llama-3.2-1B"
# twice = ioi_prompts(model.tokenizer, 32, style="general", corruption="S2->IO")
# name = ioi_prompts(model.tokenizer, 32, style="general", corruption="IO->RAND")
# ```
#
# Then pick `movers` and `tellers` below from what the maps show.

# %% [markdown]
# ## Which name is said twice
#
# First the second mention is exchanged (S2 becomes IO), which turns the answer round. Every cell of the map restores
# the residual stream entering one layer at one position. 1 means that the whole difference between the two runs is
# back, 0 that nothing is. S1+1 is the control: a word that says nothing about who is who.

# %%
from interp.patching.activation import activation_patching

roles = ["IO", "S1", "S1+1", "S2", "end"]
twice_by_position = activation_patching(model, twice, "resid_pre", by="position", positions=roles)
twice_by_position.plot()

# %% [markdown]
# What was said twice is known at S2 up to layer 2 and at the end from layer 3 on.
#
# ## The name itself
#
# Now the name to be said is exchanged for a third one.

# %%
name_by_position = activation_patching(model, name, "resid_pre", by="position", positions=roles)
name_by_position.plot()

# %% [markdown]
# The name stays where it was read until layer 2 and is then at the end. So layer 2 moves both. Which of its heads?
#
# ## Heads
#
# The same with the output of every single head, at all positions. The table has the heads that bring back most of the
# name, with 95 % bootstrap intervals over the 32 pairs.

# %%
twice_by_head = activation_patching(model, twice, "z", by="head")
name_by_head = activation_patching(model, name, "z", by="head")
share = "normalised_ratio_of_means"
name_by_head.frame.nlargest(4, share)[["layer", "head", share, f"{share}_low", f"{share}_high", "n"]]

# %%
name_by_head.plot()

# %% [markdown]
# ## The control
#
# Any two heads might do, if they were restored together. So restore the two best heads of either kind, at the end
# only, and beside them pairs of random other heads of layer 2. Numbers are logit differences (the right name less the
# other one, in logits): means over the pairs with 95 % intervals.

# %%
import pandas as pd

from interp.heads.causal import random_heads
from interp.metrics import logit_difference
from interp.patching.pairs import corrupted
from interp.stats import bootstrap_interval

movers, tellers = [(2, 0), (2, 1)], [(2, 6), (2, 7)]


def restore(prompts, heads):
    """The logit difference with these heads restored, with random ones instead, with none and with everything."""
    donor = model.run(prompts, read=["z.2"])
    chosen = {"these heads": heads} | {
        f"random heads, draw {seed}": random_heads(model, heads, seed) for seed in range(4)
    }
    edits = [
        [interp.patch(f"z.{layer}.{head}", donor).at(positions="end") for layer, head in of] for of in chosen.values()
    ]
    result = interp.sweep(model, corrupted(prompts), edits, logit_difference())
    return {"nothing": result.base[0], **dict(zip(chosen, result.values[:, 0], strict=True))}


restored = {"the name, by 2.0 and 2.1": restore(name, movers), "said twice, by 2.6 and 2.7": restore(twice, tellers)}
pd.DataFrame({what: {of: str(bootstrap_interval(v)) for of, v in rows.items()} for what, rows in restored.items()})

# %% [markdown]
# ## The same from gradients
#
# Attribution patching (Nanda 2023) estimates all patches at once from one gradient. It is exact only for what is
# linear, so it belongs beside the exact numbers.

# %%
from interp.patching.attribution import attribution_patching
from interp.plots.head_scatter import head_scatter

estimated = attribution_patching(model, name, "z", by="head")
exact, estimate = name_by_head.frame[share], estimated.frame[share]
agreement = exact.corr(estimate)
head_scatter(
    name_by_head.frame[["layer", "head"]].assign(x=exact, y=estimate),
    "exact patching (share restored)",
    "attribution patching (share restored)",
    f"the name, by head: Pearson r = {agreement:.3f}, 32 heads, 32 pairs",
)

# %% [markdown]
# ## Both at once
#
# Each head by how much it brings back of either. Heads of layer 0 lie between the axes: they write what a token is at
# its own place, whichever token was exchanged.

# %%
head_scatter(
    name_by_head.frame[["layer", "head"]].assign(x=twice_by_head.frame[share], y=exact),
    "which name is said twice (share restored)",
    "the name itself (share restored)",
    "what a head carries, 32 pairs each",
)

# %% [markdown]
# **The name goes from its place to the end in layer 2, carried by heads 2.0 and 2.1; which of the two names it has to
# be comes from S2 in the same layer, by two other heads, 2.6 and 2.7.** Restoring one kind does nothing for the
# other, and random heads do nothing for either.
