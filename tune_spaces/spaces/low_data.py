"""Little data: fractions of the training images times kinds of models, all within the same compute.

Answers: how much likelihood does each kind of model lose with fewer images? The fractions are nested, and
all use the same validation and test images. A budget is SECONDS of one core of an AMD EPYC at the time that
an image takes with the sizes of `mnist` below, or a part of it if less training validated better. The weights
that validated best are selected: with few images the last ones are overfitted.

Cost: 12 trials of at most SECONDS and their scores: half an hour on 2 cores, two trials at a time
(`--preset mnist --scheduler none --scale.cpus_per_worker 1`); less with the preset `digits`.
Best known result: none that counts; the space `comparison` has a search for each kind, and more seeds.
"""

from tune_spaces.space import Choice, Settings, Space

SECONDS = 300
BATCH = 32
FRACTIONS = (1.0, 0.1, 0.01)


def cases(
    kind: str, budgets: tuple[float, float, float], vae_ms: float, prior_ms: float = 0.0, fit_s: float = 0.0
) -> list[Settings]:
    """A kind at each of FRACTIONS. budgets: the part of SECONDS for each. *_ms: a core's time of an image.

    A prior gets a sixth of the time. fit_s: seconds in which the posterior's temperatures are fitted.
    """
    found: list[Settings] = []
    for fraction, budget in zip(FRACTIONS, budgets, strict=True):
        prior_s = budget * SECONDS / 6 if prior_ms else 0.0
        vae_s = budget * SECONDS - prior_s - fit_s
        stages = {"vae.images": (vae_s, vae_ms), "prior.images": (prior_s, prior_ms)}
        images = {key: int(s * 1000 / ms) // BATCH * BATCH for key, (s, ms) in stages.items() if ms}
        every = {"train.eval_every_images": images["vae.images"] // 40}
        rate = {"vae.learning_rate": 2e-3 if kind == "npdraw" else 1e-3}
        found.append({"data.fraction": fraction, "model.kind": kind, **images, **every, **rate})
    return found


NPDRAW = cases("npdraw", (1.0, 0.3, 0.1), 2.2, 1.2, 6.0)
TRAINING = {
    **NPDRAW[0],
    "scale.num_workers": 1,
    "train.batch_size": BATCH,
    "train.micro_batch": BATCH,
    "train.select": "best",
    "vae.prior_learning_rate": 1e-3,
    "vae.tau_end": 0.25,
    "eval.images": 256,
}

SPACE = Space(
    fields={
        "case": Choice(
            (
                *NPDRAW,
                *cases("vae", (1.0, 0.3, 0.1), 1.55),
                *cases("draw", (1.0, 1.0, 0.3), 2.4),
                *cases("air", (1.0, 1.0, 1.0), 0.65),
            )
        ),
    },
    samples=12,
    budgets={
        "digits": TRAINING,
        # The sizes of NP-DRAW that are best at this compute (space `architecture`), and similar baselines.
        "mnist": {
            **TRAINING,
            "prior.width": 64,
            "vae.encoder_width": 64,
            "vae.decoder_width": 32,
            "baseline.width": 64,
            "baseline.hidden": 256,
        },
    },
)
