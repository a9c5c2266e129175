# %% [markdown]
# # Does the model see the tree of the code?
#
# A program is a tree: an assignment holds an expression, a loop holds a block. The AST probe (Hernández López et al.
# 2022) looks for a small subspace of the hidden states in which the distance between neighbouring tokens says how deep
# the tree divides them, and from which the labels of its nodes can be read. From this the whole tree is put together
# and compared with the one a parser gives.

# %%
import interp

model = interp.load("pocket")
model

# %% [markdown] tags=["another-model"]
# **With GPT-2 or Llama** use more functions, a larger subspace and the training of the paper:
#
# ```python
# import interp
# from probes.ast.corpus import sample_functions, split_by_file
# from probes.ast.training import Settings
#
# model = interp.load("openai-community/gpt2")  # or "meta-llama/Llama-3.2-1B"
# functions = sample_functions(2000, [model.tokenizer], max_tokens=256)
# split = split_by_file(functions)
# settings = Settings(rank=128, epochs=40, batch=8, plateau=2)
# ranks = (8, 16, 32, 64)
# ```
#
# `folder=` and `name=` of `sample_functions` take your own code, in Python, JavaScript or Go.

# %% [markdown]
# ## The score and its controls
#
# The score is the F1 of the recovered nodes: a node counts if its label and the tokens it spans are right. A parser
# has 1. Labels and lengths alone give something, so every number needs its controls:
#
# * **embedding**: the same probe on the token embeddings, which know no neighbours;
# * **untrained**: the same probe on a model of the same shape with random weights. Its attention mixes neighbours too,
#   without having learned anything;
# * **shifted**: each token gets the state of another one of its function;
# * **right-branching**, **balanced**: trees of a fixed shape, whatever the code, with the probe's labels.
#
# **Following token** is no control but a question: how much is lacking because a causal model cannot look ahead? It
# reads the state of the next token, which has seen one token more.
#
# ## Functions like those it was trained on
#
# `pocket` was trained on generated Python functions, among other things. A study of 400 of them takes half a minute,
# so here is the one that ships with the workbench. No file has functions both in the training and in the test of the
# probe. It was made by
#
# ```sh
# interp probe ast fit pocket --generated -n 400 --rank 16 --ranks 2,4,8,32
# ```

# %%
from probes.ast.result import AstStudy

known = AstStudy.load(interp.samples_folder() / "ast")
known.plot()

# %% [markdown]
# By how much is the best layer above each control? Differences are paired over the functions of the test, their 95 %
# intervals drawn over files. `beyond` says that the difference is at least 0.1 and that the intervals of the two do not
# overlap: that much counts here as the model's doing.

# %%
versus = known.comparisons()
versus.style.hide(axis="index").format(precision=2)

# %% [markdown]
# The model is above every control. But look how far the untrained model comes: mixing a token with those before it
# goes a long way in functions as regular as these, and about half of what the states have beyond the embeddings is
# there without training. And the next token knows more of the tree than the model can know at the token itself.
#
# The tree of one function, parsed and recovered. Nodes that only one of the two has are marked. Put your own code here:

# %%
from probes.ast.corpus import Snippet
from probes.ast.reading import fresh_model, read_code

code = """\
def sum_values(values, count):
    total = 0
    for item in values:
        total += item
    return total
"""
snippet = Snippet.of(code)
read = read_code(model, known, [snippet], fresh=fresh_model(model, known))[0]
read.plot()

# %% [markdown]
# The same function by every reader. One function says little: a control can be ahead in it.

# %%
read.frame.style.hide(axis="index").format(precision=2)

# %% [markdown]
# ## Code it has never seen
#
# Now live, and smaller: 120 short functions of Python's standard library. Most of their names and much of their syntax
# are new to `pocket`.

# %%
from probes.ast.corpus import sample_functions, split_by_file
from probes.ast.study import ast_study
from probes.ast.training import Settings

seed = 0
functions = sample_functions(120, [model.tokenizer], max_tokens=64, per_file=4, seed=seed)
split = split_by_file(functions, seed=seed)
settings = Settings(rank=16, epochs=10, batch=4, learning_rate=5e-3, plateau=3, seed=seed)
ranks = (4,)

study = ast_study(model, split, settings=settings, ranks=ranks, seed=seed)
print(max(split.test, key=lambda snippet: len(snippet.leaves)).code)
study.comparisons().style.hide(axis="index").format(precision=2)

# %%
study.plot()

# %% [markdown]
# **A little on code like that of its training, and on other code no.** From 105 held-out functions of the first kind
# more of the tree can be recovered than from the embeddings, from fixed shapes and from an untrained model of the same
# shape, but that last step is the smallest. On functions of the standard library the states of `pocket` give no more
# than those of the untrained model, and no more than a tree that always branches to the right. Without that control
# both curves would have passed for syntax.
