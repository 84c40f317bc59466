"""Little data: the share of the training images times the size of the model.

Answers: how fast does the likelihood fall off with fewer images, and does a small model fall slower?
Validation and test images are the same for all shares.

Cost: a trial of the preset `digits` takes 1 to 3 minutes on a core.
Best known result: none yet; `best.yaml` of a run is one.
"""

from tune_spaces.space import Choice, Space

SPACE = Space(
    fields={
        "data.fraction": Choice((1.0, 0.5, 0.25, 0.1)),
        "model": Choice(
            (
                {"prior.width": 64, "prior.depth": 3, "vae.encoder_width": 64, "vae.decoder_width": 32},
                {"prior.width": 32, "prior.depth": 2, "vae.encoder_width": 32, "vae.decoder_width": 16},
                {"prior.width": 128, "prior.depth": 4, "vae.encoder_width": 96, "vae.decoder_width": 64},
            )
        ),
    },
    samples=12,
    budgets={
        "digits": {"prior.images": 6_000, "vae.images": 12_000, "train.eval_every_images": 3_000},
    },
)
