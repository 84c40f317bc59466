"""The result of `cluster.first_gpu`: first_gpu.json, and first_gpu.md for people."""

import json
from collections.abc import Mapping
from pathlib import Path

from cluster.first_gpu_steps import STEPS, Figures, Outcome

# What is asked of a GPU first: (figure, step, words).
HEADLINES = [
    ("vae_step_flops_utilization", "bench", "VAE step: share of the card's own matrix product"),
    ("prior_step_flops_utilization", "bench", "prior step: the same"),
    ("vae_step_flops_utilization", "bench_large", "VAE step of a large batch: the same"),
    ("prior_step_flops_utilization", "bench_large", "prior step of a large batch: the same"),
    ("step_peak_gflops", "bench", "that product, GFLOP/s"),
    ("step_peak_bits", "bench", "bits of its numbers"),
    ("vae_step_images_per_s", "bench", "VAE images/s"),
    ("vae_step_images_per_s", "bench_large", "VAE images/s of a large batch"),
    ("launches_vae_relaxed_step", "bench", "kernels of a VAE step"),
    ("busy_vae_relaxed", "bench", "share of its time in which the card computes"),
    ("compile_speedup", "compile", "train.compile: times as fast"),
    ("channels_last_speedup", "bench_large", "channels_last: times as fast"),
    ("kmeans_gpu_speedup", "kmeans", "k-means: times as fast as on the CPU"),
    ("kmeans_gpu_objective_vs_cpu", "kmeans", "its objective over the CPU's"),
    ("samples_per_s", "bench", "samples/s"),
    ("vae/images_per_s", "train", "images/s of the whole VAE stage"),
    ("serve_p50_ms_of_1", "editor", "the editor's answer, median, ms"),
    ("serve_p95_ms_of_8", "editor", "the same, 8 clients, 95%, ms"),
]


def write(out: Path, outcomes: Mapping[str, Outcome], left: list[str], small: bool) -> None:
    """Both files."""
    facts = outcomes["machine"].figures if "machine" in outcomes else {}
    result = {
        "card": facts.get("card"),
        "small": small,
        "left": left,
        "steps": {name: outcome.__dict__ for name, outcome in outcomes.items()},
    }
    (out / "first_gpu.json").write_text(json.dumps(result, indent=2) + "\n")
    (out / "first_gpu.md").write_text(_page(facts, outcomes, left, small))


def _page(facts: Figures, outcomes: Mapping[str, Outcome], left: list[str], small: bool) -> str:
    lines = [f"# {facts.get('card') or 'No GPU'}{', small sizes' * small}", ""]
    lines += [", ".join(f"{name} {value}" for name, value in facts.items() if value is not None), ""]
    if left:
        lines += [f"Not run yet: {', '.join(left)}.", ""]
    lines += ["| step | outcome | calls | seconds |", "|---|---|---|---|"]
    for step in STEPS:
        if (outcome := outcomes.get(step.name)) is not None:
            note = f": {outcome.note}" if outcome.note else ""
            shown = f"{outcome.status}{note}".replace("|", "/")
            lines.append(f"| {step.title} | {shown} | {outcome.calls} | {outcome.seconds:.0f} |")
    found = [
        (words, outcomes[step].figures[name])
        for name, step, words in HEADLINES
        if step in outcomes and name in outcomes[step].figures
    ]
    lines += ["", "| figure | value |", "|---|---|"]
    lines += [f"| {words} | {_shown(value)} |" for words, value in found]
    for step in STEPS:
        if (outcome := outcomes.get(step.name)) is not None and outcome.figures:
            lines += ["", f"## {step.title}", "", *(f"    {command}" for command in outcome.commands), ""]
            lines += ["| figure | value |", "|---|---|"]
            lines += [f"| `{name}` | {_shown(value)} |" for name, value in outcome.figures.items()]
    return "\n".join(lines) + "\n"


def _shown(value: float | str | None) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
