# %% [markdown]
# # Where in the weights is a fine-tuned skill?
#
# Fine-tuning moves nearly every weight a little. Panigrahi et al. (2023) find that few of these moves matter: put the
# fine-tuned values of one weight in a hundred, or fewer, back into the model as it was, and it can do the task. This
# notebook teaches `pocket` a small task and looks for those weights.

# %%
import interp

model = interp.load("pocket")
model

# %% [markdown] tags=["another-model"]
# **With GPT-2 or Llama** give your own examples, smaller learning rates, more steps, and search longer:
#
# ```python
# import interp
# from interp.skills.finetune import finetune
# from interp.tasks.classification import Classification
#
# model = interp.load("openai-community/gpt2")  # or "meta-llama/Llama-3.2-1B"
# words = {"positive": "great", "negative": "terrible"}  # label → word the model says
# task = Classification.from_jsonl("reviews.jsonl", model.tokenizer, template="{text} It was", words=words)
# tuned = finetune(model, task, learning_rate=0.01, steps=1000, batch=16)
# budgets = {1e-4: 100, 1e-3: 100, 1e-2: 100}  # share of the weights → steps of the search
# ```
#
# Fine-tuning by SGD leaves skills more local than AdamW does, in the paper as here.

# %% [markdown]
# ## The task
#
# Which of four topics is a sentence about? The model answers with one of four words. It was never asked this before, so
# it starts at chance, 0.25.

# %%
from interp.skills.finetune import finetune
from interp.tasks.classification import bundled_task

seed = 0
sizes = {"train": 192, "validation": 32, "test": 96, "ood": 0}
task = bundled_task("topic", model.tokenizer, seed=seed, sizes=sizes)
for text, answer in zip(task["train"].prompts.texts[:4], task["train"].prompts.answers[:4], strict=True):
    print(text, "→", answer.strip())

tuned = finetune(model, task, steps=60, batch=8, seed=seed)
{"before": task.accuracy(model), "after": task.accuracy(tuned.model), "n": len(task["test"])}

# %% [markdown]
# A short training: long enough for a clear gain, too short for the best one. All that follows is a share of this gain.
#
# ## Masks
#
# A mask says which weights are taken from the fine-tuned model. The search starts with those that moved most, then
# follows the gradient of the task's loss, and keeps the best mask by some training and all validation examples. Here
# are masks of 0.1 %, 1 % and 10 % of the weights. To save time only the mask of 1 % is searched; the others hold what
# moved most.

# %%
from interp.skills.localize import localize

budgets = {1e-3: 0, 1e-2: 10, 1e-1: 0}
found = {
    share: localize(
        model, tuned.model, task, sparsity=share, steps=steps, batch=12, measure_every=5, measured=32, seed=seed
    )
    for share, steps in budgets.items()
}
found[1e-2]

# %% [markdown]
# ## How much of the skill does a mask carry?
#
# `recovered` is the share of the gain in accuracy on 96 test sentences, with 95 % bootstrap intervals. Beside each mask
# stand as many weights chosen at random, as many that moved most (`movement`), and random weights again, but as many of
# every matrix as the mask has there (`same matrices`). If it were enough to know the layer and the module, these would
# do as well as the mask.

# %%
from interp.skills.evaluation import evaluate, with_baselines

masks = [each.mask for each in found.values()]
baselines = ["random", "same matrices", "movement"]
candidates = with_baselines(model, tuned.model, masks, baselines=baselines, seeds=[seed])
result = evaluate(model, tuned.model, task, candidates, seed=seed)
columns = ["method", "budget", "parameters", "accuracy", "recovered", "recovered_low", "recovered_high", "n"]
result.frame[columns].style.hide(axis="index").format(precision=2, subset=columns[3:]).format("{:.1%}", subset="budget")

# %%
result.plot("gain")

# %% [markdown]
# One weight in a hundred carries most of the gain, one in ten nearly all of it. Random weights carry next to nothing,
# and so does one in a hundred from the very same matrices: the skill is in single weights, and naming a layer or a
# module does not find it. With one in ten the same matrices carry about a third of the gain: a mask so large fills some
# matrices so far that random weights of theirs meet a quarter of it.
#
# ## Where are they?
#
# The share of the mask in every layer and in every module, beside what random masks of its size have there (mean, and
# where 95 % of them lie). Remember `kept` in the table above: the search replaced only a few percent of the weights
# that moved most. So this is first of all a picture of where fine-tuning moved weights far.

# %%
shares = {by: found[1e-2].mask.shares(by) for by in ("layer", "module")}
shares["layer"].style.hide(axis="index").format(precision=2, subset=["share", "by_chance", "chance_low", "chance_high"])

# %%
found[1e-2].plot()

# %% [markdown]
# **One percent of the weights holds most of this skill. More of them than chance would put there are in the first
# layer and in the value and output matrices of attention, fewer in the matrices that lead into the MLP.** But the place
# alone is not the skill: as many random weights of the same matrices recover next to none of the gain (n = 96
# sentences, one task and one model, fine-tuned for a short time).
