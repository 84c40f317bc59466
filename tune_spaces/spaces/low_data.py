"""Little data: the share of the training images times the kind of model, each at the same compute.

Answers: how fast does the likelihood fall off with fewer images, and whose falls slowest? The shares are
nested, and validation and test images are the same for all of them. Budgets in images are SECONDS of one core
of an AMD EPYC, by the time that an image takes with the sizes of `mnist` below. The weights that validated
best are taken, for with few images the last ones have learnt them by heart.

Cost: 12 trials of SECONDS and their scores, half an hour with two at a time on 2 cores
(`--preset mnist --scheduler none --scale.cpus_per_worker 1`); a third of that with the preset `digits`.
Best known result: tests/results/2026-11-25-low-data.md.
"""

from typing import Any

from tune_spaces.space import Choice, Space

SECONDS = 300
BATCH = 32


def model(kind: str, vae_ms: float, prior_ms: float = 0.0) -> dict[str, Any]:
    """A kind and its budgets. *_ms: one core's time of an image in the training stages.

    A prior gets a sixth of the time.
    """
    prior_s = SECONDS / 6 if prior_ms else 0.0
    stages = {"vae.images": (SECONDS - prior_s, vae_ms), "prior.images": (prior_s, prior_ms)}
    budgets = {key: int(s * 1000 / ms) // BATCH * BATCH for key, (s, ms) in stages.items() if ms}
    return {"model.kind": kind, **budgets, "train.eval_every_images": budgets["vae.images"] // 40}


NPDRAW = model("npdraw", 2.9, 1.2)
TRAINING = {
    **NPDRAW,
    "scale.num_workers": 1,
    "train.batch_size": BATCH,
    "train.micro_batch": BATCH,
    "train.select": "best",
    "eval.images": 256,
}

SPACE = Space(
    fields={
        "data.fraction": Choice((1.0, 0.1, 0.01)),
        "model": Choice(
            (NPDRAW, model("vae", 1.55), model("draw", 2.4), model("air", 0.65)),
        ),
    },
    samples=12,
    budgets={
        "digits": TRAINING,
        # The sizes of NP-DRAW that are best at this compute (space `architecture`), and baselines like it.
        "mnist": {
            **TRAINING,
            "prior.width": 64,
            "vae.decoder_width": 32,
            "baseline.width": 64,
            "baseline.hidden": 256,
        },
    },
)
