"""Searches width, depth, heads, learning rate and dropout of the Transformer prior.

Answers: which prior fits the parses of one bank best? All trials share the preset's bank and parses. The
prior's NLL on validation parses ranks the trials, and poor trials are stopped before they train their VAE.

Cost: a trial of the preset `digits` takes 1 to 2 minutes of a core.
Best known result: none yet.
"""

from tune_spaces.space import Choice, Range, Space

SPACE = Space(
    fields={
        "prior.width": Choice((64, 32, 128)),
        "prior.depth": Choice((3, 1, 6)),
        "prior.attention_heads": Choice((4, 2, 8)),
        "prior.heads": Choice(("chained", "independent")),
        "prior.learning_rate": Range(5e-4, 8e-3, log=True),
        "prior.dropout": Choice((0.1, 0.0, 0.2)),
    },
    budgets={"digits": {"scale.num_workers": 1, "vae.images": 12_000, "train.eval_every_images": 2_500}},
    metric="valid_prior_nll",
)
