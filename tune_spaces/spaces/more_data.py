"""More data: NP-DRAW and a VAE, each on several shares of the training images, at equal steps.

Answers: how much do ten times as many real images bring? The shares are nested. All trials see the same
number of images in the same batches, and the weights that validated best are scored on the same validation
and test images. The test split chooses nothing: no trial is stopped early, and curve.png shows all.

Of the glyphs of Debian's Noto fonts (1,212,459 for training), the shares are some 1,200, 12,000, 121,000 and
all glyphs. Prepare them once, then give `--data.source parquet --data.path GLYPHS`:
`npdraw prepare --data.source fonts --data.path FONTS --data.image_size 28 --out GLYPHS`

Cost: with the budgets of the preset `glyphs` eight trials of about an hour of a core; a tenth with
`--prior.images 50000 --vae.images 50000 --vae.relaxed_images 10000`.
Best known result: docs/results/2026-11-27-scale.md, at a fifth of the budgets.
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
        # A share that fits into memory is read once. A stream would start again every thousand images.
        "glyphs": {**CASES[0], "scale.num_workers": 1, "data.cache_mb": 256},
        "digits": {**CASES[0], "scale.num_workers": 1},
    },
    curve=True,
)
