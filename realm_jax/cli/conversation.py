"""Owns turning messages into the prompt that a model's chat template makes of them."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from realm_jax.cli.errors import CommandError

if TYPE_CHECKING:
    from realm_jax import LLM


def chat_prompt(llm: "LLM", messages: Sequence[dict[str, str]]) -> dict[str, Any]:
    """Render messages with the file's template and return the prompt as token ids.

    Special tokens are added as the file asks, but for templates that write the begin token themselves.

    Raises:
        CommandError: the file has no template.
    """
    tokenizer = llm.tokenizer
    template = tokenizer.chat_template if tokenizer else None
    if tokenizer is None or template is None:
        raise CommandError("chatting needs a chat template and the model's file has none; use `realm generate`")
    text = template.render(list(messages), add_generation_prompt=True)
    bos = "" if tokenizer.bos_id is None else tokenizer.decode([tokenizer.bos_id])
    ids = tokenizer.encode(text, add_special=not (bos and text.startswith(bos)))
    return {"prompt": text, "prompt_token_ids": ids}
