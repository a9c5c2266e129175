# %% [markdown]
# # What does a hidden state hold, written as bound symbols?
#
# The prompt `Analogy: dog : puppy = cow :` asks for `calf`. At its last token a model may hold the answer, or the
# pair cow : calf, or both pairs. The hyperdimensional probe reads a hidden state as such a list of bound symbols, and
# says which symbol is bound to which.

# %%
import interp

model = interp.load("pocket")
model

# %% [markdown] tags=["another-model"]
# **With GPT-2 or Llama** use the analogies of a file in the form of `questions-words.txt` and the template of the
# paper, and read the sum of the layers of the upper half, as the paper does:
#
# ```python
# import interp
# from interp.tasks.analogies import analogy_prompts, read_analogies
#
# model = interp.load("openai-community/gpt2")  # or "meta-llama/Llama-3.2-1B"
# relations = read_analogies("questions-words.txt")
# prompts = analogy_prompts(model.tokenizer, 5000, relations=relations, template="{a} : {b} = {c} :")
# site = "clusters"
# ```
#
# The causal check at the end moves the state of one layer, so give the probe one as well: `ingestions=("clusters",
# "resid_post.8")`. Words of several tokens are asked for by their first token.

# %% [markdown]
# ## Symbols as random vectors
#
# Every concept gets a random vector of 512 entries +1 and -1. Binding two concepts multiplies their vectors entry by
# entry; the vectors of several pairs are added up. Multiplying by a vector again takes it out. No model yet: here is
# the analogy written as one vector, and what is found in it after taking out each of its words. A cosine of 0 is
# chance.

# %%
import pandas as pd

from interp.tasks.analogies import analogy_prompts, structures
from probes.vsa.algebra import MAP
from probes.vsa.codebook import Codebook
from probes.vsa.decode import unbound

seed, site = 0, "resid_post.2"
prompts = analogy_prompts(model.tokenizer, 1000, seed)
said = structures(prompts)
codebook = Codebook.of(said, MAP, 512, seed)

example = said[0]
vector = codebook.encode(example)
rows = []
for word in example.concepts:
    cosines = unbound(vector, [word], codebook)
    found = codebook.concepts[int(cosines.argmax())]
    rows.append({"taken out": word, "found": found, "cosine": float(cosines.max())})
print(prompts.texts[0], "→", example.target)
pd.DataFrame(rows)

# %% [markdown]
# ## From hidden states to such vectors
#
# The encoder is a linear map from the residual stream after the third of the four layers, at the last token, to the
# vector of what the prompt says. It is fitted on 80 % of the combinations of two pairs and tested on combinations it
# was not fitted to. Beside it stand:
#
# * **random codebook**: the same decoding with other random vectors;
# * **linear probe**: an ordinary classifier of the answer, on the same states and without any symbols;
# * **next token** and **DLA** (direct logit attribution): what the model itself would say, by its logits;
# * **commonest target**: always the most frequent answer.
#
# The hypervector is decoded in four ways. `key` takes out the word that is asked about. `last` takes out the concept
# that the text names last, and `new` tries all that it names: both know the text only. `oracle` also looks at the
# right answer, so it is a bound and no decoder. Precision@k is the share of prompts where the answer is among the
# first k concepts.

# %%
from probes.vsa.study import hyperdimensional_probe

probe = hyperdimensional_probe(model, prompts, dimensions=512, ingestions=(site,), training=None, seed=seed)
probe.plot()

# %%
first = probe.frame[(probe.frame.subset == "all") & probe.frame.metric.isin(["precision@1", "cosine"])]
first[["method", "decoder", "needs", "metric", "value", "low", "high", "n"]].style.hide(axis="index").format(
    precision=2
)

# %% [markdown]
# The answer is read from most held-out prompts, from the text alone as well, and never with a random codebook. Two
# rows warn against reading more into this:
#
# * an ordinary linear probe does as well, so here the symbols add a notation and no accuracy;
# * the cosine between the predicted and the true vector hardly exceeds that of one constant vector for all prompts. A
#   cosine alone is no evidence.
#
# ## One pair or both?
#
# The first pair was part of the target too. Is it there? The encoder's vectors of the held-out prompts, with one word
# taken out at a time, and 95 % Wilson intervals:

# %%
from interp.stats import wilson_interval

test = probe.split.test.tolist()
encoder = f"linear/before/{site}"
hits = {"first word → second word": [], "second word → first word": [], "third word → answer": []}
for i in test:
    (a, b), (c, d) = said[i].bindings
    top = probe.decode(model, prompts.texts[i], encoder, [a, b, c], top=1).concept
    for name, concept, true in zip(hits, top, (b, a, d), strict=True):
        hits[name].append(concept == true)
shares = {name: wilson_interval(sum(each), len(each)) for name, each in hits.items()}
pairs = pd.DataFrame(shares.values(), index=list(shares)).rename(columns={"estimate": "share found"})
pairs.style.format(precision=2)

# %% [markdown]
# At the last token the asked pair is there. The pair of the example mostly is not; the answer is all that the model
# still has to say.
#
# ## Bound, or recognised?
#
# All pairs above occur in the training prompts, in other combinations. Would the probe find a pair it has never seen
# bound? In key-value prompts ("Anna has the key. ... Recall: Anna has the") pairs can be held out entirely.

# %%
from interp.tasks.analogies import key_value_prompts

unseen = hyperdimensional_probe(
    model,
    key_value_prompts(model.tokenizer, 500, seed, sentences=0),
    by="pair",
    dimensions=512,
    ingestions=(site,),
    training=None,
    seed=seed,
)
frame = unseen.frame[(unseen.frame.subset == "all") & (unseen.frame.metric == "precision@1")]
frame = frame[frame.decoder.isin(["", "key"])][["method", "decoder", "value", "low", "high", "n"]]
frame.style.hide(axis="index").format(precision=2)

# %% [markdown]
# No. The vector of a pair that was never bound in training is unlike all that the encoder was fitted to. The linear
# probe still reads the answer, which occurred in other pairs. So what the encoder finds above is *which* of the pairs
# it knows is asked for; it does not show that the model computes by binding.
#
# ## Does the model use it?
#
# Move the state along the encoder's direction for the pair of another prompt, by a multiple of the state's own
# length, and see what the model says. A direction that is good to read with may be bad to write with, so two are
# tried: `encoder` is the gradient of the encoder itself, `pattern` the same turned into the direction in which the
# states really vary (Haufe et al. 2014). The control is `random`: random directions of the same length.

# %%
from probes.vsa.causal import causal_check

moved = causal_check(
    model,
    prompts.select(test),
    [said[i] for i in test],
    probe.encoder(encoder),
    probe.codebook,
    site,
    strengths=(0.5, 1.5),
    draws=2,
    seed=seed,
)
moved.plot()

# %% [markdown]
# **At the last token the state holds the pair that is asked for and little of the example pair, and the model's
# answer depends on it.** Moved along the pattern by one and a half times its length, the state makes the model say
# the other prompt's answer for about half of the 101 held-out prompts, and after random moves as long hardly ever.
# But the probe reads no more than an ordinary linear probe does, and it recognises pairs it was fitted to: of pairs
# it never saw bound it finds none.
