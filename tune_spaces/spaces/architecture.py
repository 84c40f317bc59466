"""Eleven designs of the model at equal compute: sizes and order.

Answers: which design reaches the best likelihood with the same floating-point operations? Each design
changes one setting of the preset `mnist`; the last ones combine the best changes. A budget in images is
PRIOR or VAE over the operations of an image, forward and backward, as `torch.utils.flop_counter` (and
`npdraw_dist.bench`) counts them.

Cost: a quarter of an hour on 2 cores, two trials at a time: `--scheduler none --scale.cpus_per_worker 1`.
Best known result: docs/results/2026-11-25-architecture.md.
"""

from tune_spaces.space import Choice, Settings, Space, Value

PRIOR, VAE = 2_000_000, 6_000_000  # 10^6 operations
BATCH = 128


def design(prior_cost: int, vae_cost: int, **settings: Value) -> Settings:
    """Settings (`prior__depth` is prior.depth) and budgets in images. *_cost: 10^6 operations an image."""
    named = {key.replace("__", "."): value for key, value in settings.items()}
    images = [total // cost // BATCH * BATCH for total, cost in ((PRIOR, prior_cost), (VAE, vae_cost))]
    return {"prior.images": images[0], "vae.images": images[1], **named}


PRESET = design(188, 443)

SPACE = Space(
    fields={
        "design": Choice(
            (
                PRESET,
                design(367, 622, prior__depth=8),
                design(50, 305, prior__width=64),
                design(414, 669, prior__width=192, prior__attention_heads=6),
                design(188, 307, vae__decoder_width=32),
                design(188, 667, vae__decoder_width=96),
                design(190, 448, parse__order="ranked"),
                design(190, 448, parse__order="ranked", prior__heads="independent"),
                design(50, 305, prior__width=64, prior__attention_heads=8),
                design(50, 169, prior__width=64, vae__decoder_width=32),
                design(50, 129, prior__width=64, vae__decoder_width=32, vae__encoder_width=64),
            )
        )
    },
    samples=11,
    preset="mnist",
    budgets={
        "mnist": {
            **PRESET,
            "train.batch_size": 32,  # hundreds of steps instead of dozens
            "train.micro_batch": 32,
            "train.eval_every_images": 4_000,
            "eval.images": 256,
        }
    },
)
