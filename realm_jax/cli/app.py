"""Owns the list of subcommands and what `realm` alone answers."""

from typing import Annotated

import typer

from realm_jax.cli import batch, bench, chat, doctor, evaluate, generate, inspect, perplexity, plan, pull, tokenize

_HELP = """Run GGUF language models as compiled JAX programs whose weights stay quantised.

Exit codes: 0 success, 1 an error, 2 a wrong command line, 130 interrupted.
"""

app = typer.Typer(
    name="realm",
    help=_HELP,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # drawing help in boxes takes longer than all the rest of `realm --help`
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> bool:
    if wanted:
        from realm_jax.cli.versions import version_of

        print(f"realm-jax {version_of('realm-jax') or 'unknown: not installed as a package'}")
        raise typer.Exit()
    return wanted


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and stop.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show an error's traceback; may stand anywhere on the command line.")
    ] = False,
) -> None:
    """Hold the options that come before a subcommand."""


app.command()(generate.generate)
app.command()(chat.chat)
app.command()(tokenize.tokenize)
app.command()(inspect.inspect)
app.command()(plan.plan)
app.command()(perplexity.perplexity)
app.command("eval", context_settings=evaluate.PASSES_ON)(evaluate.evaluate)
app.command()(batch.batch)
app.command()(bench.bench)
app.command()(pull.pull)
app.command()(doctor.doctor)
