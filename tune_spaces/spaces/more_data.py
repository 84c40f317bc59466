"""Trains NP-DRAW and a VAE, each on several shares of the training images, for equal numbers of steps.

Answers: how much do ten times as many real images help? Each share contains the smaller ones. All trials
have batches of the same size, and the weights with the best validation score are scored on the same
validation and test images. No choice depends on the test split: no trial is stopped early, and curve.png
shows all trials.

With the glyphs of Debian's Noto fonts (1,212,459 for training), the shares are about 1,200, 12,000, 121,000
and all glyphs. Prepare the glyphs once, then give `--data.source parquet --data.path GLYPHS`:
`npdraw prepare --data.source fonts --data.path FONTS --data.image_size 28 --out GLYPHS`

Cost: with the budgets of the preset `glyphs`, each of the eight trials takes about one core-hour; it takes a
tenth of that with `--prior.images 50000 --vae.images 50000 --vae.relaxed_images 10000`.
Best known result: docs/results/2026-11-27-scale.md, with a fifth of the budgets.
"""

from tune_spaces.space import Choice, Settings, Space

FRACTIONS = (1.0, 0.1, 0.01, 0.001)
KINDS = ("npdraw", "vae")
CASES: tuple[Settings, ...] = tuple(
    {"data.fraction": fraction, "model.kind": kind} for kind in KINDS for fraction in FRACTIONS
)

SPACE = Space(
    fields={"case": Choice(CASES)},
    samples=len(CASES),
    preset="glyphs",
    budgets={
        # With this cache a small share is read into memory once; as a stream it would be read in each epoch.
        "glyphs": {**CASES[0], "scale.num_workers": 1, "data.cache_mb": 256},
        "digits": {**CASES[0], "scale.num_workers": 1},
    },
    curve=True,
)
