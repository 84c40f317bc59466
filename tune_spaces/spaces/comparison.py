"""Compares all kinds of models, by ten random trials each and new seeds of the best trial.

Answers: which kind has the best likelihood, and which the best samples, if all train for the same time on
100%, 10% or 1% of the images? This file fixes ranges and budgets before anything is trained. A fifth of the
images is held out to choose the best trial. Only `npdraw report` opens the test split, once.

Cost: a kind takes at most 21 times `core_seconds`: 10 for trials, 5 for seeds (3 unless the source is mnist),
2 + 4 for the report's row "until it stops improving". Seven kinds take 10 core-hours with 100% of the images,
5 with 10%, 2.5 with 1%, and a fifth more for cost measurements and scores.
Best known results on MNIST-8k, ten trials of each kind: docs/results/2026-12-01-comparison.md with 100%,
2026-12-02-four-times.md with 100% and four times the budget, 2026-11-30-comparison.md with 10% and 1%.
"""

from tune_spaces.space import Choice, Kinds, Range, Settings, Space

Fields = dict[str, Choice | Range]

# Settings that are searched for every kind.
COMMON: Fields = {
    "train.batch_size": Choice((16, 32, 64)),
    "vae.learning_rate": Range(1e-3, 8e-3, log=True),
    "vae.dropout": Choice((0.0, 0.1, 0.2)),
    "vae.weight_decay": Choice((0.0, 0.01, 0.1)),
    "vae.latent_ramp": Choice((0.0, 0.4)),  # warm-up of the KL's weight
    "train.augmented": Choice((0.5, 0.0)),
    "train.average_images": Choice((0.0, 4000.0)),
}
CONVOLUTIONS: Fields = {"baseline.width": Choice((32, 64, 96)), "baseline.depth": Choice((1, 2, 3))}
GAUSSIANS: Fields = {"baseline.latents": Choice((20, 40, 80))}
SEQUENCE: Fields = {
    "prior.depth": Choice((2, 4)),
    "prior.dropout": Choice((0.0, 0.1, 0.2)),
    "prior.table": Choice(("joint", "factorised")),
}

DRAW = ("baseline.steps", "baseline.latents", "baseline.hidden", "baseline.read", "baseline.write")
# Sizes for which the counted time is enough; it is too short for the DRAW paper's 64 steps of 100 Gaussians.
DRAWS: tuple[Settings, ...] = tuple(
    dict(zip(DRAW, size, strict=True))
    for size in ((5, 20, 256, 12, 14), (10, 10, 256, 12, 14), (10, 10, 128, 5, 8))
)

# Settings that override the preset in all trainings.
SETTINGS: Settings = {
    "train.optimizer": "muon",
    "vae.prior_learning_rate": 4e-3,
    "prior.learning_rate": 4e-3,
    "vae.images": 60_000,  # only its ratio to prior.images matters; core_seconds sets the real number
    "prior.images": 30_000,
    "vae.relaxed_images": None,
    "train.select": "best",
    "train.patience": 0,  # no training ends early
    "eval.images": 256,
    "eval.k": 50,
    "scale.num_workers": 1,
}

SPACE = Kinds(
    spaces={
        "npdraw": Space(
            {
                **COMMON,
                **SEQUENCE,
                "bank.size": Choice((25, 50, 100)),  # the number of parts K
                "vae.parse_weight": Range(5.0, 50.0, log=True),  # the paper's lambda
                "places": Choice(
                    ({"grid.patch": 5, "grid.stride": 5}, {"grid.patch": 7, "grid.stride": 7})
                ),  # sets the number of steps T
                "vae.latents": Choice((16, "map:2", "map:4")),
                "vae.decoder_width": Choice((32, 64)),
                "vae.encoder_width": Choice((32, 64)),
                "prior.images": Choice((15_000, 30_000)),  # a quarter or a half of vae.images
            },
        ),
        "vae": Space({**COMMON, **CONVOLUTIONS, **GAUSSIANS}),
        "vamp": Space(
            {**COMMON, **CONVOLUTIONS, **GAUSSIANS, "baseline.pseudo_inputs": Choice((50, 100, 200))}
        ),
        "flow": Space({**COMMON, **CONVOLUTIONS, **GAUSSIANS, "baseline.flow_layers": Choice((4, 6, 8))}),
        "vqvae": Space(
            {
                **COMMON,
                **CONVOLUTIONS,
                **SEQUENCE,
                "baseline.codes": Choice((32, 64, 128)),
                "baseline.latents": Choice((8, 16, 32)),
            },
        ),
        "draw": Space({**COMMON, "size": Choice(DRAWS)}),
        "air": Space(
            {
                **COMMON,
                "baseline.steps": Choice((2, 3, 4)),
                "baseline.latents": Choice((10, 20, 50)),
                "baseline.hidden": Choice((128, 256)),
                "baseline.glimpse": Choice((12, 20, 28)),
            },
        ),
    },
    common=COMMON,
    settings=SETTINGS,
    core_seconds={1.0: 240.0, 0.1: 120.0, 0.01: 60.0},
    seeds={"mnist": 5},
)
