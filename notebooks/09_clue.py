# %% [markdown]
# # Can hidden states tell a right answer from a wrong one?
#
# CLUE ("Non-parametric Verification from Experience via Hidden-State Clustering") says yes, and with very little: take
# how far a model's hidden states move from the beginning to the end of its reasoning, average these moves over right
# and over wrong answers, and trust a new answer if its move lies nearer to the first average. Nothing is trained. But a
# verifier must beat what needs no hidden states: the length of the answer, and how sure the model was of it.

# %%
import interp

model = interp.load("pocket")
model

# %% [markdown] tags=["another-model"]
# **With GPT-2 or Llama** collect answers to your own questions, or read those you have. A model that reasons says where
# its reasoning begins and ends:
#
# ```python
# import interp
# from probes.traces import Experience
#
# model = interp.load("meta-llama/Llama-3.2-1B-Instruct")  # or "openai-community/gpt2", without delimiters
# experience = Experience.from_jsonl("answers.jsonl", model.tokenizer, delimiters=("<think>", "</think>"))
# ```
#
# A line of the file holds `question`, `prompt`, `response` and `correct`. `interp probe verify collect` samples them.

# %% [markdown]
# ## Answers, right and wrong
#
# `pocket` adds two numbers column by column, with the steps written down. At temperature 0 it is nearly always right,
# which leaves nothing to tell apart. At temperature 1.9 it errs often. Here are 8 answers to each of 24 sums that were
# kept from its training.

# %%
from interp.pocket.documents import is_held_out
from interp.tasks.addition import addition_problems
from probes.sampling import collect

seed = 0
problems = addition_problems(24, seed, digits=(2, 2), keep=is_held_out)
experience = collect(model, problems, n_samples=8, temperature=1.9, max_new_tokens=40, seed=seed)
for trace in experience[:3]:
    print(model.tokenizer.decode(trace.trace), f"[{'right' if trace.correct else 'wrong'}]\n")
experience

# %% [markdown]
# ## Two averages
#
# The reasoning goes from `Steps:` to `Answer:`. Where an answer lacks these words its ends are taken, for now. The
# averages come from one half of the questions, and everything below is measured on the other half: 12 questions. The
# picture shows the moves of their 96 answers, projected: to the right lies the average of right answers, to the left
# that of wrong ones.

# %%
from probes.clue import fit, score
from probes.verification import verify

learned, held_out = experience.split(0.5, seed)
centroids = fit(model, learned, missing="ends", certainty=False)
scored = score(model, held_out, centroids, certainty=False)
every = verify(scored, seed=seed).value("clue margin", "auc")
scored.plot()

# %% [markdown]
# AUC is the chance that a right answer scores higher than a wrong one; 0.5 is guessing. CLUE scores an answer by how
# much nearer it lies to the right average than to the wrong one:

# %%
print(every)

# %% [markdown]
# ## What are those far points?
#
# Before this number is trusted, look at the far points of the picture. Here are the answers by whether they are right
# and whether they reach the word `Answer:`, with their mean distances to the two averages:

# %%
kinds = scored.frame.groupby(["correct", "end_found"])[["to_success", "to_failure"]]
kinds.mean().round(0).assign(answers=kinds.size())

# %% [markdown]
# The far ones never reach `Answer:`. Their move ends at another kind of token, so it is another kind of move, and
# without an answer they are wrong by definition. Nobody needs hidden states to see that. The question is about answers
# that are there, so leave the others out, from the averages too.
#
# ## Answers that are answers, beside what needs no hidden states
#
# The baselines:
#
# * **length**: the number of tokens, in the direction in which right and wrong ones differed in the first half;
# * **usual length**: how near the length is to that of right answers;
# * **log-probability**: the mean over the answer's tokens, at temperature 1;
# * **self-certainty**: how far the model's predictions are from uniform, on average.
#
# `clue margin` is the score from above, `clue` only how near the average of right answers is. Intervals are 95 %
# bootstraps over questions, as answers to one question are alike. `within` is the mean AUC inside one question: a score
# that only knows which questions are easy has 0.5 there.

# %%
answered = score(model, held_out, fit(model, learned, missing="drop"))
verification = verify(answered, seed=seed)
auc = verification.frame[verification.frame.metric.isin(["auc", "within"])]
print(answered)
auc.style.hide(axis="index").format(precision=2)

# %% [markdown]
# Overlapping intervals do not decide which of two scores is better on the same answers; paired differences do. By how
# much is CLUE's margin above each baseline?

# %%
print(verification.verdict)
verification.against.style.hide(axis="index").format(precision=2)

# %%
verification.plot()

# %% [markdown]
# **In `pocket` they hardly can, at least not this way.** Among answers that reach their end, CLUE's margin, whose sign
# is its verdict, is not told apart from guessing, nor from the length of the answer (12 questions, about 80 answers).
# Over all answers its AUC is higher, for those that break off are wrong and lie far out. The distance to the right
# average alone (`clue`) does somewhat better and stays far below the mean log-probability, which the model gives for
# free: at this temperature errors are slips of sampling that the model itself finds improbable. Larger models may err
# in other ways, so the answer there may differ; run the same controls.
