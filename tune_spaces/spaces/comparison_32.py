"""Compares six models on emoji and glyphs of 32x32: each has ten random trials, and then more seeds.

Answers: do the results of the space `comparison` on binary digits hold for colour and for smooth grey shapes?
How much do parts improve the likelihood of these images, and how much does a map of Gaussians? NP-DRAW and a
VAE are trained with and without a map. The other models are the VQ-VAE with NP-DRAW's prior, and the VAE with
a flow prior, the best rival at 1% of MNIST-8k. Ranges and budgets are written down here before anything is
trained.

Cost: a kind takes 19 times `core_seconds`: 10 trials, 3 seeds, and up to 2 + 4 times the time for the row
"until it stops improving". Six models take 4 hours of a core at 10%, 8 at 100%, and a fifth more for rates
and scores.
Best known result, six trials a kind, with 10% of the images: NP-DRAW 3.369 ± 0.016 bits/dim on emoji, VQ-VAE
3.448 ± 0.016; NP-DRAW 0.696 ± 0.003 on glyphs, VAE 0.771 ± 0.003
(docs/results/2026-11-30-comparison.md). On emoji with 90 core-seconds: 3.220 ± 0.004 with
parts and a map, 3.385 ± 0.010 with parts alone, 3.343 ± 0.025 with a map alone, 3.540 ± 0.029 with neither.
On glyphs of another choice of typefaces with 60 core-seconds, in the same order: 0.840, 0.839, 0.865 and
0.942 (docs/results/2026-12-01-parts-and-gaussians.md, ...-glyphs.md).
"""

from tune_spaces.space import Choice, Kinds, Range, Space
from tune_spaces.spaces.comparison import SETTINGS, Fields
from tune_spaces.spaces.comparison import SPACE as DIGITS

OURS = DIGITS.spaces["npdraw"].fields
PARTS: Fields = {
    **{key: domain for key, domain in OURS.items() if key != "prior.table"},  # kept at the default `pixels`
    "bank.size": Choice((125, 250, 500)),  # the number of parts K
    "vae.parse_weight": Range(50.0, 500.0, log=True),  # lambda, at the start
    "places": Choice(({"grid.patch": 4, "grid.stride": 4}, {"grid.patch": 8, "grid.stride": 8})),  # T
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
