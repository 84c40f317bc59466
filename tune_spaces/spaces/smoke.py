"""Runs two tiny trials, which show that sweeps work on this machine or cluster.

It answers nothing about the model. Both trials share one bank and its parses.

Cost: about a minute on 2 cores.
Best known result: none.
"""

from tune_spaces.space import Choice, Space

SPACE = Space(
    fields={"prior.depth": Choice((1, 2)), "vae.decoder_width": Choice((16, 32))},
    samples=2,
    budgets={
        "digits": {
            "scale.num_workers": 1,
            "data.fraction": 0.3,
            "bank.size": 20,
            "prior.depth": 1,
            "prior.width": 16,
            "prior.attention_heads": 2,
            "prior.images": 512,
            "vae.images": 512,
            "vae.encoder_width": 16,
            "vae.decoder_width": 16,
            "eval.images": 32,
            "eval.k": 5,
            "train.batch_size": 128,
            "train.eval_every_images": 256,
        }
    },
)
