"""Searches lambda (`parse_weight`), beta, the last tau and the decoder's width of the VAE.

Answers: how should posterior and decoder be trained with a given prior? All trials share one bank, its parses
and one prior.

Cost: a trial of the preset `digits` takes 1 to 2 minutes of a core; the first trials also wait for the prior.
Best known result: none yet.
"""

from tune_spaces.space import Choice, Range, Space

SPACE = Space(
    fields={
        "vae.parse_weight": Range(1.0, 100.0, log=True),
        "vae.beta": Choice((1.0, 0.7, 1.3)),
        "vae.tau_end": Choice((0.5, 0.3, 1.0)),
        "vae.decoder_width": Choice((32, 16, 64)),
    },
    budgets={"digits": {"scale.num_workers": 1, "vae.images": 12_000, "train.eval_every_images": 3_000}},
)
