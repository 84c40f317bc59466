"""How a drawing is cut up: bank size K, number and size of the steps, depth of the Transformer.

Answers: how many parts, how many steps of what size, and how deep a prior are worth their cost?
The layouts: a part a place (`aligned`, T = all places) of side 5, 7 and 4; the same places with the
24 best parts only; overlapping places with 16 large parts. A bank and a parse serve all depths.

Cost: 12 trials of the preset `digits` in less than 25 minutes on 2 cores, two at a time.
Best known result: none yet; `best.yaml` of a run is one.
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
