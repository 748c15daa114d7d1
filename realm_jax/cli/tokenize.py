"""Owns `realm tokenize`: the token ids of a text."""

from typing import Annotated

import typer

from realm_jax.cli import options
from realm_jax.cli.console import print_json, print_table
from realm_jax.cli.model_file import open_model
from realm_jax.cli.text_input import read_text


def tokenize(
    model: options.Model,
    text: Annotated[str | None, typer.Argument(help="The text; or use --file.", show_default=False)] = None,
    file: options.PromptFile = None,
    special: Annotated[
        bool, typer.Option("--special/--no-special", help="Add the model's BOS and EOS where its file asks for them.")
    ] = True,
    parse_special: Annotated[
        bool, typer.Option("--parse-special/--no-parse-special", help="Read <|im_end|> and the like as one token.")
    ] = True,
    json: options.Json = False,
    cache_dir: options.CacheDir = None,
    offline: options.Offline = False,
) -> None:
    """Print the tokens of a text.

    One a line: the id and the text it stands for.
    """
    from realm_jax.tokenizer import Tokenizer

    content = read_text(text, file, argument_name="TEXT")
    with open_model(model, cache_dir=cache_dir, offline=offline) as gguf:
        tokenizer = Tokenizer.from_gguf(gguf.metadata)
        ids = tokenizer.encode(content, add_special=special, parse_special=parse_special)
        # a token may hold a part of a character
        pieces = [tokenizer.id_to_piece(token).decode("utf-8", "backslashreplace") for token in ids]
    if json:
        print_json({"token_ids": ids, "pieces": pieces, "count": len(ids)})
    else:
        print_table(("id", "piece"), [(token, repr(piece)) for token, piece in zip(ids, pieces, strict=True)])
