"""Ablates NP-DRAW on digits. Each variant lacks one idea, and every model has ten trials and five seeds.

Answers the questions of the paper's ablations. How much does the model gain from attention instead of an
LSTM? From the parser, which trains the prior and adds a cross-entropy to the VAE's loss? From a bank of real
patches instead of Gaussian parts? This file fixes ranges and budgets before anything is trained.

Cost: a model takes at most 21 times `core_seconds`: 10 for trials, 5 for seeds, 2 + 4 for the report's row
"until it stops improving". Four models take 3 core-hours with all images, and a fifth more for measurements.
Known results: docs/results/2026-12-02-ablations.md, with 120 and with 40 core-seconds for each training,
without a search.
"""

from tune_spaces.space import Choice, Kinds, Settings, Space
from tune_spaces.spaces.comparison import COMMON, SEQUENCE, SETTINGS, Fields
from tune_spaces.spaces.comparison import SPACE as DIGITS

# The stage `prior` trains on only one batch, and the VAE's loss has no cross-entropy with the parses.
NO_PARSER: Settings = {"vae.parse_weight": 0.0, "vae.parse_weight_end": 0.0, "prior.images": 1}

OURS = dict(DIGITS.spaces["npdraw"].fields)
UNPARSED: Fields = {key: domain for key, domain in OURS.items() if key not in NO_PARSER}

SPACE = Kinds(
    spaces={
        "npdraw": Space(OURS),
        "npdraw-lstm": Space({**OURS, "without": Choice(({"prior.network": "lstm"},))}),
        "npdraw-without-parser": Space({**UNPARSED, "without": Choice((NO_PARSER,))}),
        "gaussian": Space(
            {
                **COMMON,
                "prior.depth": SEQUENCE["prior.depth"],
                "prior.dropout": SEQUENCE["prior.dropout"],
                "places": OURS["places"],
                "baseline.latents": Choice((4, 8, 16)),
                "baseline.width": Choice((32, 64)),
            }
        ),
    },
    settings=SETTINGS,
    core_seconds={1.0: 120.0},
    other_seeds=5,
)
