"""Searches the bank size K, the number and size of an image's parts, and the depth of the Transformer prior.

Answers: which bank size, number and size of parts, and depth of the prior are worth their cost? There are
five layouts. Three may draw a part at each place (`aligned`, T = number of places), with parts of 5x5, 7x7
and 4x4 pixels. The fourth draws only the 24 best parts of 5x5 pixels, and the fifth 16 parts of 7x7 pixels at
overlapping places. Trials that differ only in depth share bank and parses.

Cost: 12 trials of the preset `digits` take 13 minutes on 2 cores, two trials at a time.
Best known result: docs/results/2026-11-25-structure.md.
"""

from tune_spaces.space import Choice, Space

SPACE = Space(
    fields={
        "bank.size": Choice((50, 25, 100, 200)),
        "layout": Choice(
            (
                {"grid.patch": 5, "grid.stride": 5, "parse.order": "aligned", "parse.steps": None},
                {"grid.patch": 7, "grid.stride": 7, "parse.order": "aligned", "parse.steps": None},
                {"grid.patch": 4, "grid.stride": 4, "parse.order": "aligned", "parse.steps": None},
                {"grid.patch": 5, "grid.stride": 5, "parse.order": "ranked", "parse.steps": 24},
                {"grid.patch": 7, "grid.stride": 4, "parse.order": "ranked", "parse.steps": 16},
            )
        ),
        "prior.depth": Choice((3, 1, 6)),
    },
    samples=12,
    budgets={
        "digits": {
            "scale.num_workers": 1,
            "prior.images": 6_000,
            "vae.images": 12_000,
            "train.eval_every_images": 3_000,
        },
    },
)
