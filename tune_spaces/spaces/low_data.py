"""Little data: the share of the training images times the kind of model.

Answers: how fast does the likelihood fall off with fewer images, and whose falls slowest? The shares are
nested, and validation and test images are the same for all of them.

Cost: a trial of the preset `digits` takes 1 to 3 minutes on a core.
Best known result: none yet; `best.yaml` of a run is one.
"""

from tune_spaces.space import Choice, Space

SPACE = Space(
    fields={
        "data.fraction": Choice((1.0, 0.1, 0.01)),
        "model.kind": Choice(("npdraw", "vae", "draw", "air")),
    },
    samples=12,
    budgets={
        "digits": {
            "scale.num_workers": 1,
            "prior.images": 6_000,
            "vae.images": 12_000,
            "train.eval_every_images": 3_000,
        },
    },
)
