# %% [markdown]
# # What can I see inside a language model in ten minutes?
#
# A tour: load a model, watch it work on one prompt, change it while it works, and keep what was found. The model is
# `pocket`, which comes with the workbench. It is a model organism: small, trained on generated text, and good at a
# few narrow skills. Everything here runs offline on a laptop.
#
# First load it, on the attention kernels of this project. They can measure and change single heads while they
# compute.

# %%
import interp

model = interp.load("pocket", attention="workbench")
model

# %% [markdown] tags=["another-model"]
# **With GPT-2 or Llama** only the first cell changes. The name is one on the Hugging Face hub or a local folder.
#
# ```python
# import interp
#
# model = interp.load("openai-community/gpt2", attention="workbench")  # or "meta-llama/Llama-3.2-1B"
# ```
#
# The rest stays. Below, take two prompts with the same number of tokens (the table says how many each has), and read
# the layers of the heads that you find. GPT-2 was not trained to look numbers up: if it finds none, no head gets a
# score, and the error says so.

# %% [markdown]
# ## One prompt
#
# A number is stated once in the middle of filler text and asked for at the end. The model has to find it.

# %%
from interp.tasks.needle import needle_prompts

prompts = needle_prompts(model.tokenizer, lengths=[128], depths=[50], n_needles=4)
prompt, other = prompts[0], prompts[1]
prompts

# %% [markdown]
# What does the model say next? Probabilities of the most probable next tokens:

# %%
from interp.next_token import next_token

next_token(model, prompt, top=5)

# %% [markdown]
# ## Where does the answer appear?
#
# The logit lens (nostalgebraist 2020) reads the residual stream after each layer as if the model stopped there. Rows
# are layers, columns the last tokens of the prompt, and each cell holds the token the model would say.

# %%
from interp.logit_lens import logit_lens

logit_lens(model, prompt, last=12).plot()

# %% [markdown]
# In the last column the right digit appears after layer 2, not before. So something in layer 2 fetches it.
#
# ## Which heads look at the answer?
#
# The kernel reports for every head which token it looks at most; no attention matrix is ever built. A head *copies*
# at a position if that token is the very one the model says next. These heads (layer.head) copy at the last token:

# %%
import numpy as np

from interp.attention_summary import attention_summary

attention = attention_summary(model, prompt)
heads = [tuple(head) for head in np.argwhere(attention.copied[:, :, -1]).tolist()]
heads

# %% [markdown]
# The map shows how far back each head looks. Most heads of this model stay near their own token.

# %%
attention.plot("distance")

# %% [markdown]
# ## Read and change an activation
#
# Looking at a token does not show that it matters. So change it. `run` keeps only what `read` names; `patch` puts
# what it read into another run. Here the two heads receive, at the last token, what they computed on a prompt with
# another number.

# %%
donor = model.run(other, read=["z.2"])
donor

# %%
patches = [interp.patch(f"z.{layer}.{head}", donor).at(positions=-1) for layer, head in heads]
patched = next_token(model, prompt, edits=patches, top=3)
patched

# %% [markdown]
# The model now says the first digit of the *other* prompt's number, which stands nowhere in the text it reads. The
# control is the same patch with two random heads of the same layer. It should leave the answer alone.

# %%
from interp.heads.causal import random_heads

others = random_heads(model, heads, seed=0)
controls = [interp.patch(f"z.{layer}.{head}", donor).at(positions=-1) for layer, head in others]
unmoved = next_token(model, prompt, edits=controls, top=3)
unmoved

# %% [markdown]
# ## A score for every head
#
# One prompt is an anecdote. The retrieval score (Wu et al. 2024) counts how often a head looks exactly at the token
# that is being copied, over many needle tests: here 4 needles at 3 depths of a 256-token text, so n = 12. Heads with
# at least 0.1 are called retrieval heads.

# %%
from interp.heads.retrieval import retrieval_scores

tests = needle_prompts(model.tokenizer, lengths=[256], depths=[10, 50, 90], n_needles=4)
scores = retrieval_scores(model, tests)
scores

# %% [markdown]
# ## Keep it, and look at it in the explorer
#
# A result is saved as a run: a folder with its table, its arrays and a record of how it was made. The explorer shows
# the same figures, with clicks. This folder is a temporary one; the command line writes its runs to `runs/`.

# %%
from pathlib import Path
from tempfile import mkdtemp

from interp.heads.scores import HeadScores

folder = Path(mkdtemp(prefix="interp-tour-"))
scores.save(folder / "tour")
again = HeadScores.load(folder / "tour")
print(f"In a terminal: interp explore --runs {folder}")
again.plot()

# %% [markdown]
# ## Do these heads matter?
#
# A score is a correlation. The ablation report takes the heads away (each head's output becomes its mean over the
# prompts, inside the kernel), asks all 12 questions again, and does the same with two random heads of the same layer,
# five times.

# %%
from interp.heads.causal import ablation_report

report = ablation_report(model, tests, again.above(0.1), ablations=["mean"])
report.summary()

# %%
report.plot()

# %% [markdown]
# **Two of the 32 heads fetch the number.** Without them the model answers none of the 12 questions (95 % interval 0
# to 24 %); without two random heads of the same layer it still answers most of them.
