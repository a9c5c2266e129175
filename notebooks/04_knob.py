# %% [markdown]
# # Does the model listen to the context or to its memory, and can one direction decide it?
#
# A prompt says that Paris lies in Kenya and asks where Paris is. The model can answer from the context (Kenya) or
# from what it learned (France). Minder et al. (2025) found one direction in the residual stream that decides between
# the two: a knob. Here it is looked for in `pocket`, measured beside simpler directions, and turned.
#
# `pocket` is a model organism. It was trained on such contradictions with the instruction which source to use, so it
# has something like a knob to find. Whether a larger model has one is another question, which the same steps answer.

# %%
import interp
from interp.tasks.context_prior import PromptForm, fact_items

model = interp.load("pocket")
form = PromptForm(wording="pocket")
items = fact_items(200)
fresh = fact_items(60, seed=1)
model

# %% [markdown] tags=["another-model"]
# **With GPT-2 or Llama** change this cell. The paper's wording and a few shown examples suit models that were not
# trained on these prompts; `layer=None` below tries every layer, so name some in a deep model. GPT-2 knows few
# capitals: look at the accuracy *as instructed* before anything else.
#
# ```python
# model = interp.load("meta-llama/Llama-3.2-1B-Instruct")  # or "openai-community/gpt2"
# items, fresh = fact_items(200), fact_items(60, seed=1)
# form = PromptForm(wording="paper", demonstrations=tuple(fact_items(5, seed=2)))
# ```

# %% [markdown]
# ## The prompts
#
# One contradiction in three forms: with the instruction to use the context, with the instruction to ignore it, and
# without an instruction.

# %%
from interp.tasks.context_prior import context_prompts

asked = context_prompts(model.tokenizer, items.take([0]), form)
silent = context_prompts(model.tokenizer, items.take([0]), form.silent, ["context"])
for prompt in (*asked.texts, *silent.texts):
    print(prompt, end="\n\n")

# %% [markdown]
# ## The search for a direction
#
# Take two prompts that differ only in the instruction. Exchange what they have along one direction, after one layer,
# at the last token. If each now gives the other's answer, the direction carries the decision. For every layer the
# best direction is fitted on some contradictions and tested on others. Beside it: directions found more simply, and a
# random one.

# %%
from interp.knob import Training, fit_knob

result = fit_knob(model, items, layer=None, form=form, training=Training(steps=100))
result.plot("layers")

# %% [markdown]
# After layer 1 one direction carries nearly the whole decision. Before, there is nothing to exchange at the last
# token, and after it the answer is already on its way. A probe that merely tells the two intents apart (logistic
# regression) finds a direction that decides nothing.
#
# The test prompts along the fitted direction:

# %%
result.plot("coordinates")

# %% [markdown]
# ## Turn it
#
# Now without any instruction. Left alone the model answers from memory. The knob is set to the value that means
# context; the controls move the hidden state as far along random directions.

# %%
from interp.knob import steer

unseen = result.unseen(fresh)
prompts = context_prompts(model.tokenizer, unseen, form.silent, ["context"])
steer(model, result.knob, prompts[0], "context", new_tokens=3)

# %% [markdown]
# One prompt is an anecdote. The same for all contradictions that the knob was not fitted on, as instructed, without
# instruction, and with the knob alone, with 95 % Wilson intervals:

# %%
from interp.knob import evaluate

values = [-20, 0, 20, 40, 60, 80, 100]
behaviour = evaluate(model, unseen, result.knob, form=form, values=values)
columns = ["setting", "intent", "context", "prior", "other", "right", "right_low", "right_high", "n"]
behaviour.frame[columns]

# %% [markdown]
# ## What else does it change?
#
# A direction that decides one thing should leave others alone. Held-out items of two other skills, answered without
# the knob and with it at either value; `change` is paired over the items, with a 95 % bootstrap interval.

# %%
from interp.knob import side_effects
from interp.tasks.ioi import ioi_prompts
from interp.tasks.needle import needle_prompts

others = {
    "IOI": ioi_prompts(model.tokenizer, 40, style="pocket"),
    "finding a number": needle_prompts(model.tokenizer, [128], [25, 75], n_needles=10),
}
cost = side_effects(model, result.knob, others)
cost

# %% [markdown]
# ## The whole range of the knob

# %%
behaviour.plot()

# %% [markdown]
# **Left alone, `pocket` answers from memory; one direction after layer 1 decides.** Without a word of instruction,
# set to context the model answers all of 58 new contradictions from the context, set to prior all from memory (95 %
# intervals 94 to 100 %). It cost at most one of 60 answers in two other skills.
