"""All kinds of models with the same chance: six random trials each, the same counted time, then more seeds.

Answers: which kind has the best likelihood, and the best samples, at 100%, 10% and 1% of the images? Ranges
and budgets are written down here before anything is trained. Validation images decide, a fifth of the images
of the fraction; the test split stays closed until `evaluate --compare` opens it once.

Cost: a kind has 6 trials, 5 seeds of the winner (MNIST; 3 elsewhere) and up to 2 + 4 times the time for the
row "until it stops improving", so 17 times `core_seconds`: for 7 kinds 8 hours of a core at 100%, 4 at 10%, 2
at 1%, and a fifth more for cost measurements and scores: for MNIST in all nine hours of 2 cores.
Best known result: at 100% of MNIST, docs/results/2026-11-28-comparison-100.md; at 10% and 1%,
docs/results/2026-11-28-comparison.md.
"""

from tune_spaces.space import Choice, Kinds, Range, Settings, Space

Fields = dict[str, Choice | Range]

# Open to all kinds alike.
COMMON: Fields = {
    "vae.learning_rate": Range(5e-4, 4e-3, log=True),
    "vae.dropout": Choice((0.0, 0.1, 0.2)),
    "vae.weight_decay": Choice((0.0, 0.01, 0.1)),
    "vae.latent_ramp": Choice((0.0, 0.2, 0.4)),  # warm-up of the KL
    "train.augmented": Choice((0.5, 0.0)),
    "train.average_images": Choice((0.0, 4000.0)),
}
CONVOLUTIONS: Fields = {"baseline.width": Choice((32, 64, 96)), "baseline.depth": Choice((1, 2, 3))}
GAUSSIANS: Fields = {"baseline.latents": Choice((20, 40, 80))}
TRANSFORMER: Fields = {"prior.depth": Choice((2, 4)), "prior.dropout": Choice((0.0, 0.1, 0.2))}

DRAW = ("baseline.steps", "baseline.latents", "baseline.hidden", "baseline.read", "baseline.write")
SMALL_DRAW: Settings = dict(zip(DRAW, (10, 10, 256, 12, 14), strict=True))
PAPERS_DRAW: Settings = dict(zip(DRAW, (64, 100, 256, 2, 5), strict=True))  # Gregor et al. 2015, table 3

# Over the preset, for all trainings.
SETTINGS: Settings = {
    "train.batch_size": 32,
    "train.micro_batch": 32,
    "train.select": "best",
    "train.patience": 0,  # the same time for each, whatever happens on the way
    "eval.images": 256,
    "eval.k": 50,
    "scale.num_workers": 1,
}

SPACE = Kinds(
    spaces={
        "npdraw": Space(
            {
                **COMMON,
                **TRANSFORMER,
                "bank.size": Choice((25, 50, 100)),  # K
                "vae.parse_weight": Range(5.0, 50.0, log=True),  # lambda
                "places": Choice(
                    ({"grid.patch": 5, "grid.stride": 5}, {"grid.patch": 7, "grid.stride": 7})
                ),  # T
                "vae.latents": Choice((0, 16, 32)),
                "vae.decoder_width": Choice((32, 64)),
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
                **TRANSFORMER,
                "baseline.codes": Choice((32, 64, 128)),
                "baseline.latents": Choice((8, 16, 32)),
            },
        ),
        "draw": Space(
            {
                **COMMON,
                "size": Choice((SMALL_DRAW, PAPERS_DRAW)),
            },
        ),
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
    settings=SETTINGS,
    core_seconds={1.0: 240.0, 0.1: 120.0, 0.01: 60.0},
    seeds={"mnist": 5},
)
