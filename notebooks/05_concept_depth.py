# %% [markdown]
# # At what depth does the model know a concept?
#
# A concept is readable at a layer if a linear probe can tell its two classes apart from the hidden states there. Where
# along the depth does that begin? "Exploring Concept Depth" (Jin et al. 2024) finds that simple concepts come early and
# inferences late. This notebook asks the same of `pocket`, the bundled model, which has four layers.

# %%
import interp

model = interp.load("pocket")
model

# %% [markdown] tags=["another-model"]
# **With GPT-2 or Llama** change the first cell, and in the study below take more examples and let every training fold
# choose among several regularisation strengths, because the states are wider:
#
# ```python
# import interp
# from probes.linear import ProbeSpec
#
# model = interp.load("openai-community/gpt2")  # or "meta-llama/Llama-3.2-1B"
# n, spec = 1000, ProbeSpec(strengths=(0.001, 0.01, 0.1, 1.0))
# ```
#
# Your own texts and labels come from a file: `LabelledTexts.from_file("reviews.csv")`, with columns `text` and `label`.
# The sentences below speak of `pocket` only.

# %% [markdown]
# ## Three concepts
#
# One concept of each level: a fact, an emotion, an inference. Every data set has 160 texts, half of each class.

# %%
import pandas as pd

from interp.tasks.concepts import concept

n, seed = 160, 0
data = [
    concept("sentiment").texts(n, difficulty=1, seed=seed),
    concept("country").texts(n, difficulty=3, seed=seed),
    concept("comparison").texts(n, difficulty=2, seed=seed),
]
rows = [
    {"concept": each.name, "level": each.level, "a text": text, "its label": label}
    for each in data
    for text, label in zip(each.texts[:2], each.labels[:2], strict=True)
]
pd.DataFrame(rows).style.hide(axis="index").set_properties(**{"white-space": "pre-wrap", "text-align": "left"})

# %% [markdown]
# * **sentiment**: is the adjective of the review positive? The probe is tested on adjectives it was not fitted to.
# * **country**: is the country that the answer must name in the first half of a list? The prompt holds a context that
#   contradicts what the model learned, and says which of the two to use. Tested on cities the probe was not fitted to.
# * **comparison**: does the conclusion follow from two premises? Both orders of the names occur, so no single word
#   tells the classes apart.
#
# ## Probes at every layer
#
# The probes are logistic regressions on the residual stream after each layer, at the last token, in 5-fold
# cross-validation: every accuracy is of texts that the probe was not fitted to. Four controls are measured alongside:
#
# * **control**: random labels, one for each word (or pair of words) that decides the label (Hewitt & Liang 2019). A
#   probe that only remembers words does as well here;
# * **shuffled**: the true labels on other texts;
# * **untrained**: a model of the same shape with random weights;
# * **bag of tokens**: no model, only how often each token occurs in the text.

# %%
from probes.depth import concept_depth
from probes.linear import ProbeSpec

spec = ProbeSpec(strengths=(0.03,), seed=seed)
study = concept_depth(model, data, sites=["resid_post"], spec=spec, draws=2)

# %% [markdown]
# The best layer of the probe beside the best layer of each control, with 95 % bootstrap intervals over the texts:

# %%
accuracy = study.frame[study.frame.metric == "accuracy"]
best = accuracy.loc[accuracy.groupby(["dataset", "series"], sort=False)["value"].idxmax()]
shown = [f"{row.value:.2f} [{row.low:.2f}, {row.high:.2f}]" for row in best.itertuples()]
best.assign(accuracy=shown).pivot(index="dataset", columns="series", values="accuracy").loc[
    [each.name for each in data], ["probe", "control", "shuffled", "untrained", "bag of tokens"]
]

# %% [markdown]
# The probe is above every control, but mind how different the margins are. Sentiment and comparison are read almost
# without error where the controls guess. The words of the country prompts alone already tell something, and a model
# without training can pass that on, so the margin there is small.
#
# ## One number for a curve
#
# The **jump point** is the layer with the first steep rise. The **converging point** is where the curve has become flat
# at a level above the largest class. Both are shares of the depth, layer / layers counted from 0: in a model of four
# layers 0.5 is the third layer, `resid_post.2`. The intervals are bootstrapped over texts. Where one has no width,
# nearly all resamples chose the same layer; four layers allow only four values. A jump can also lie between two values
# at chance, so with few texts it is the weaker of the two, and the answer below uses the converging point.

# %%
points = study.points()
points[["dataset", "level", "jump", "jump_low", "jump_high", "converging", "converging_low", "converging_high", "n"]]

# %% [markdown]
# ## The curves
#
# Bands are 95 % intervals, dashes are controls, a triangle marks the jump point and a star the converging point.

# %%
study.plot()

# %% [markdown]
# **`pocket` knows a sentiment at the third of its four layers, and only the fourth knows whether an inference holds.**
# The two converging points have intervals that do not overlap, and at those layers no control comes near (n = 160
# texts each). The fact is not read before the sentiment, and less well than either: this prompt asks the model to
# decide between context and memory first. What a probe reads the model need not use; four layers are few, so the order
# is the finding and the exact depth is not.
