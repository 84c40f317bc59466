"""The settings of NP-DRAW's best trial in the comparison at 120 core-seconds, and variants without one idea.

Nothing is searched. Gaussian parts have the settings of their best trial at 40 core-seconds.
"""

from tune_spaces.space import Choice, Kinds, Settings, Space
from tune_spaces.spaces.ablations import NO_PARSER
from tune_spaces.spaces.comparison import SETTINGS

BOTH: Settings = {
    "train.batch_size": 32,
    "vae.dropout": 0.0,
    "vae.latent_ramp": 0.4,
    "train.augmented": 0.0,
    "prior.depth": 2,
    "prior.dropout": 0.0,
    "grid.patch": 5,
    "grid.stride": 5,
}
OURS: Settings = {
    **BOTH,
    "vae.learning_rate": 0.007920165276016373,
    "vae.weight_decay": 0.01,
    "train.average_images": 4000.0,
    "prior.table": "factorised",
    "bank.size": 50,
    "vae.parse_weight": 38.54802371091956,
    "vae.latents": "map:4",
    "vae.decoder_width": 32,
    "vae.encoder_width": 64,
    "prior.images": 30_000,
}
GAUSSIAN: Settings = {
    **BOTH,
    "vae.learning_rate": 0.004664394293890982,
    "vae.weight_decay": 0.1,
    "train.average_images": 0.0,
    "baseline.latents": 4,
    "baseline.width": 32,
}


def only(settings: Settings) -> Space:
    """A space with one point."""
    return Space({"settings": Choice((settings,))})


SPACE = Kinds(
    spaces={
        "npdraw": only(OURS),
        "npdraw-lstm": only({**OURS, "prior.network": "lstm"}),
        "npdraw-without-parser": only({**OURS, **NO_PARSER}),
        "gaussian": only(GAUSSIAN),
    },
    settings=SETTINGS,
    core_seconds={1.0: 120.0},
    trials=1,
    other_seeds=5,
    longer=(),
)
