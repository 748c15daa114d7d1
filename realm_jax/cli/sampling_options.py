"""Owns the options that say how tokens are chosen and when a text ends."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from realm_jax import SamplingParams

MaxTokens = Annotated[int, typer.Option("--max-tokens", "-n", min=1, help="Generate at most this many tokens.")]
Temperature = Annotated[
    float, typer.Option("--temperature", "-t", min=0.0, help="0 takes the most probable token each time.")
]
TopK = Annotated[int, typer.Option(min=0, help="Draw from this many most probable tokens; 0 is off.")]
TopP = Annotated[float, typer.Option(min=0.0, max=1.0, help="Draw from the top tokens of this probability together.")]
MinP = Annotated[float, typer.Option(min=0.0, max=1.0, help="Drop tokens below this part of the top probability.")]
RepetitionPenalty = Annotated[float, typer.Option(min=0.01, help="Above 1, tokens seen before become less probable.")]
Seed = Annotated[int | None, typer.Option(min=0, help="Same seed, same text.", show_default=False)]
Stop = Annotated[
    list[str] | None,
    typer.Option(help="End before this text; may be given several times.", show_default=False),
]
IgnoreEos = Annotated[bool, typer.Option("--ignore-eos", help="Go on past the model's end tokens.")]
System = Annotated[str | None, typer.Option(help="Instructions that come before the conversation.", show_default=False)]


def params(**chosen: Any) -> "SamplingParams":
    """Return the sampling parameters of a command's options."""
    from realm_jax import SamplingParams

    return SamplingParams(**chosen)
