"""Settings by which networks and training follow the authors' released code where ours differ.

Every default is ours; preset `authors` sets them all. docs/method.md says what each one changes.
"""

from typing import Annotated, Literal

from pydantic import Field

from npdraw_dist.config.section import Section

Stem = Literal["cumulative", "conv", "strided"]
Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]


class StepVariants(Section):
    """Of the prior: section `prior`."""

    stem: Stem = Field(
        "cumulative",
        description="the canvas so far: a sum of table entries, convolved, or strided, the authors' network",
    )
    where: Literal["given", "drawn"] = Field(
        "given",
        description="in aligned order step t is place t; or each step draws its place, as the authors' do",
    )


class NetworkVariants(Section):
    """Of posterior and decoder: section `vae`."""

    posterior: Literal["grid", "flat"] = Field(
        "grid", description="features on the grid of places, or one vector for all steps, as the authors'"
    )
    decoder: Literal["cells", "strided"] = Field(
        "cells", description="from the canvas on cells of 2x2 pixels, or strided convolutions, the authors'"
    )


class Dropout(Section):
    """Of encoder and decoder, of every kind of model: section `vae`."""

    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0,
        description="in encoder and decoder of every kind: in residual blocks, or on what an LSTM reads and "
        "writes; vae.posterior flat and vae.decoder strided have none",
    )


class SurrogateVariants(Section):
    """Of training with relaxed draws: section `vae`."""

    surrogate: Literal["places", "canvases"] = Field(
        "places",
        description="what relaxed draws train: ours; or canvases, the authors': the prior sees mixtures",
    )
    tau_ramp: Share = Field(1.0, description="share of the relaxed draws over which the temperature falls")
    tau_decay: Literal["linear", "exponential"] = Field("linear", description="how the temperature falls")
    teacher_decay: Literal["linear", "gaussian"] = Field(
        "linear",
        description="how vae.teacher_start falls: to 0 over vae.teacher_ramp, or as exp(-(share / ramp)^2)",
    )
    decoder_learning_rate: Positive | None = Field(
        None, description="peak of Adam's rate for the decoder; if not given, vae.learning_rate"
    )


class OptimizerVariants(Section):
    """Section `train`."""

    rate_decay: Literal["cosine", "linear", "none"] = Field(
        "cosine",
        description="after the warm-up the learning rate falls to 0 as a cosine; or stays, then falls to 0 "
        "linearly over the last 40% of the budget; or stays",
    )
    adam_beta2: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.99, description="Adam's decay of squared gradients"
    )


def require_possible(
    prior: StepVariants, vae: NetworkVariants, surrogate: str, heads: str, aligned: bool
) -> None:
    """Raises ValueError if the networks do not fit together. heads: of the prior; aligned: the order."""
    if vae.posterior == "flat" and not aligned:
        raise ValueError("vae.posterior flat gives each step its part; it needs parse.order aligned")
    if aligned and prior.where == "drawn" and vae.posterior != "flat":
        raise ValueError("prior.where drawn needs a posterior that draws places: vae.posterior flat")
    if heads != "independent" and (prior.stem == "strided" or (aligned and prior.where == "drawn")):
        setting = "stem strided" if prior.stem == "strided" else "where drawn"
        raise ValueError(f"prior.{setting} needs prior.heads independent, as the authors have them")
    if surrogate == "canvases" and (prior.stem != "strided" or not aligned):
        raise ValueError("vae.surrogate canvases needs prior.stem strided and parse.order aligned")


def require_usable_latents(latents: int, local: int, decoder: str) -> None:
    """Raises ValueError if the Gaussians of section `vae` do not fit its other settings."""
    if latents and local:
        raise ValueError("vae.latents and vae.local_latents are two forms of one latent; set one of them")
    name = "latents" if latents else "local_latents"
    if (latents or local) and decoder == "strided":
        raise ValueError(f"vae.{name} adds to the features of vae.decoder cells; set one of them")
