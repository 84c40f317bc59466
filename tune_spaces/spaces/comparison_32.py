"""Compares six models on 32x32 emoji and glyphs, by ten random trials each and new seeds of the best trial.

Answers: do the results of the space `comparison` on binary digits hold for colour and for smooth grey shapes?
How much do parts and a spatial map of Gaussian latents each improve the likelihood of these images? NP-DRAW
and a VAE are trained with and without a map. The other models are the VQ-VAE with NP-DRAW's prior, and the
VAE with a flow prior, which was the best rival with 1% of MNIST-8k. This file fixes ranges and budgets before
anything is trained.

Cost: a model takes at most 19 times `core_seconds`: 10 for trials, 3 for seeds, 2 + 4 for the report's row
"until it stops improving". Six models take 4 core-hours with 10% of the images, 8 with 100%, and a fifth more
for cost measurements and scores.
Best known results in bits/dim, with 10% of the images and six trials of each model: on emoji NP-DRAW 3.369 ±
0.016 and VQ-VAE 3.448 ± 0.016; on glyphs NP-DRAW 0.696 ± 0.003 and VAE 0.771 ± 0.003
(docs/results/2026-11-30-comparison.md). On emoji with 90 core-seconds: 3.220 ± 0.004 with parts and a map,
3.385 ± 0.010 with parts alone, 3.343 ± 0.025 with a map alone, 3.540 ± 0.029 with neither. On glyphs of other
typefaces with 60 core-seconds, in the same order: 0.840, 0.839, 0.865 and 0.942
(docs/results/2026-12-01-parts-and-gaussians.md, ...-glyphs.md).
"""

from tune_spaces.space import Choice, Kinds, Range, Space
from tune_spaces.spaces.comparison import SETTINGS, Fields
from tune_spaces.spaces.comparison import SPACE as DIGITS

OURS = DIGITS.spaces["npdraw"].fields
PARTS: Fields = {
    **{key: domain for key, domain in OURS.items() if key != "prior.table"},  # prior.table keeps its default
    "bank.size": Choice((125, 250, 500)),  # the number of parts K
    "vae.parse_weight": Range(50.0, 500.0, log=True),  # the paper's lambda at the start of training
    "places": Choice(({"grid.patch": 4, "grid.stride": 4}, {"grid.patch": 8, "grid.stride": 8})),  # T steps
}

SPACE = Kinds(
    preset="emoji",
    spaces={
        "npdraw": Space({**PARTS, "vae.latents": Choice(("map:4", "map:8"))}, preset="emoji"),
        "npdraw-without-map": Space({**PARTS, "vae.latents": Choice((0, 16, 32))}, preset="emoji"),
        "vae": DIGITS.spaces["vae"],
        "map": Space({**DIGITS.spaces["vae"].fields, "baseline.local": Choice((4, 8))}),
        "vqvae": Space({**DIGITS.spaces["vqvae"].fields, "baseline.codes": Choice((128, 256, 512))}),
        "flow": DIGITS.spaces["flow"],
    },
    settings={**SETTINGS, "train.shift": 2.0},
    core_seconds={1.0: 240.0, 0.1: 120.0},
)
