# %% [markdown]
# # Is the circuit of one task used by another?
#
# A circuit is the set of heads that does a task, each with a role. Here the circuit of indirect object identification
# ("Mary and John …, John gave a book to", answer: Mary) is found in `pocket`, a model organism of 32 heads. Its
# faithfulness is measured beside random circuits. Then comes the question: does another task, finding a number in a
# long text, need the same heads?

# %%
import interp
from interp.tasks.ioi import ioi_prompts
from interp.tasks.needle import needle_prompts

model, style = interp.load("pocket"), "pocket"
sentences = ioi_prompts(model.tokenizer, 32, style=style, corruption="ABC")
fresh = ioi_prompts(model.tokenizer, 32, seed=1, style=style, corruption="ABC")
needles = needle_prompts(model.tokenizer, [256], [10, 50, 90], n_needles=4)
sentences

# %% [markdown] tags=["another-model"]
# **With GPT-2 or Llama** change this cell. They know the general sentences and have more heads, so the path patching
# takes minutes. Their circuit has other roles (`ioi.by_role` lists them): choose from those in the last study. A
# model that finds no number can copy random words instead (`interp.tasks.copying.copy_prompts`).
#
# ```python
# model, style = interp.load("openai-community/gpt2"), "general"  # or "meta-llama/Llama-3.2-1B"
# sentences = ioi_prompts(model.tokenizer, 100, style=style, corruption="ABC")
# fresh = ioi_prompts(model.tokenizer, 48, seed=1, style=style, corruption="ABC")
# needles = needle_prompts(model.tokenizer, [256], [10, 50, 90], n_needles=4)
# ```

# %% [markdown]
# ## The circuit of IOI
#
# Path patching asks stage by stage, from the logits backwards, which heads move the logit difference between the two
# names (Wang et al. 2022). The counterfactual has three other names. A head gets a role if it has an effect, attends
# where the role demands and copies (or suppresses) what it attends to.

# %%
from interp.circuits.ioi import ioi_circuit, ioi_knockout

ioi = ioi_circuit(model, sentences)
ioi.plot()

# %% [markdown]
# Two *movers* copy both names to the end. Two *subject suppressors* attend to the second mention and write against
# that name. Heads of layer 0 keep the name at its place for them to see.
#
# ## Does it explain the behaviour?
#
# All heads outside the circuit are replaced by their mean over other sentences of the same form, and what is left of
# the logit difference is measured on fresh sentences (n = 32). Beside it: 10 random circuits with as many heads in
# each layer.

# %%
from interp.circuits.circuit import Circuit
from interp.circuits.evaluation import evaluate_circuit

circuit = Circuit(tuple(ioi.roles), ioi.roles)
knockout = ioi_knockout(model, fresh, reference=160, style=style, seed=2)
evaluation = evaluate_circuit(knockout, circuit, random=10, subsets=0, greedy_steps=0)
evaluation

# %%
evaluation.plot()

# %% [markdown]
# The heads with a role keep most of the logit difference, random circuits little. About a quarter is missing: it is
# spread over heads too weak to get a role. Which roles does the logit difference need?

# %%
evaluation.completeness[["K", "heads", "circuit", "model", "n"]].rename(
    columns={"K": "taken out", "circuit": "left in the circuit (logits)", "model": "left in the model (logits)"}
)

# %% [markdown]
# Without suppressors nothing tells the names apart. Movers are not missed, because they raise both names alike, and a
# difference does not show what both sides share. A single measure can hide a head.
#
# ## Overlap with coloured objects
#
# The published comparison (Merullo et al. 2024) is with coloured objects. Overlap is the share of heads in both
# circuits among the heads in either, for circuits of the strongest 2 to 25 % of each stage, with 95 % intervals over
# prompts and the overlap by chance.

# %%
from interp.circuits.colored_objects import colored_objects_circuit
from interp.circuits.reuse import circuit_reuse
from interp.tasks.colored_objects import colored_object_prompts

scenes = colored_object_prompts(model.tokenizer, 32, style="lower" if style == "pocket" else "title")
colours = colored_objects_circuit(model, scenes)
reuse = circuit_reuse(ioi, colours)
print(f"answers right: {ioi.task} {ioi.accuracy:.2f}, {colours.task} {colours.accuracy:.2f}")
reuse.plot()

# %% [markdown]
# `pocket` names the right one of three colours about one time in three: it guesses. There is no circuit to compare
# with, and the overlap cannot be told from chance. A comparison needs two tasks that the model can do.
#
# ## Overlap with finding a number
#
# `pocket` does find numbers in filler text. So take the heads of each role of IOI away (their mean instead), and ask
# for 12 numbers. Beside each: as many random heads of the same layer, three draws.

# %%
import pandas as pd

from interp.heads.causal import ablation_report
from interp.plots.ablation import removal_curves

reports = {
    role: ablation_report(model, needles, ioi.by_role[role], ablations=["mean"], seeds=(0, 1, 2))
    for role in ("mover", "subject suppressor")
}
pd.concat({role: report.summary() for role, report in reports.items()})

# %%
frames = [report.frame.assign(ablation=role) for role, report in reports.items()]
removal_curves(pd.concat(frames, ignore_index=True), title="numbers found without heads of the IOI circuit")

# %% [markdown]
# **Half of the circuit is shared: the movers of IOI are the heads that fetch numbers, its suppressors are its own.**
# Without the movers the model finds none of 12 numbers (95 % interval 0 to 24 %), without the suppressors all of them
# (76 to 100 %).
