"""Twelve designs of the model at equal seconds: sizes, stem, order, what is trained and by which gradient.

Answers: which design reaches the best likelihood in the same time on the same machine? Each changes one
thing of the preset `mnist`; its budgets are what one core trains in PRIOR_S and VAE_S seconds, by the
images/s beside it (micro-batches of 64, both cores of an AMD EPYC busy).

Cost: half an hour on 2 cores, two trials at a time: `--scheduler none --scale.cpus_per_worker 1`.
Best known result: tests/results/2026-11-25-architecture.md.
"""

from typing import Any

from tune_spaces.space import Choice, Space

PRIOR_S, VAE_S = 60, 180


def design(prior_rate: int, vae_rate: int, **settings: Any) -> dict[str, Any]:
    """Settings (`prior__depth` is prior.depth) with the budgets of their images/s."""
    named = {key.replace("__", "."): value for key, value in settings.items()}
    return {"prior.images": prior_rate * PRIOR_S, "vae.images": vae_rate * VAE_S, **named}


SPACE = Space(
    fields={
        "design": Choice(
            (
                design(700, 180),
                design(400, 150, prior__depth=8),
                design(1400, 200, prior__width=64),
                design(400, 150, prior__width=192, prior__attention_heads=6),
                design(300, 130, prior__stem="conv"),
                design(700, 300, vae__decoder_width=32),
                design(700, 110, vae__decoder_width=96),
                design(700, 220, vae__encoder_width=48),
                design(700, 200, vae__train_prior=False),
                design(700, 180, vae__whether_gradient="none"),
                design(700, 180, vae__parse_ramp=0.3),
                design(700, 160, parse__order="ranked"),
            )
        )
    },
    samples=12,
    preset="mnist",
    budgets={"mnist": {"train.eval_every_images": 10_000, "eval.images": 1_000}},
)
