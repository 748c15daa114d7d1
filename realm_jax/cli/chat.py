"""Owns `realm chat`: a conversation in the terminal, or one message a line from a pipe."""

import contextlib
import io
import itertools
import secrets
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from realm_jax.cli import options
from realm_jax.cli import sampling_options as sampling
from realm_jax.cli.console import print_json
from realm_jax.cli.conversation import chat_prompt
from realm_jax.cli.errors import sentence
from realm_jax.cli.interrupts import stop_on_interrupt
from realm_jax.cli.loading import load
from realm_jax.cli.reply import stream_reply
from realm_jax.cli.text_input import check_utf8
from realm_jax.sources import DEFAULT_MODEL

if TYPE_CHECKING:
    from realm_jax import LLM, SamplingParams

HELP = """\
/help          show this
/reset         forget the conversation
/system TEXT   set the instructions and forget the conversation; without TEXT remove them
/retry         answer the last message again
/exit          leave; so do /quit and Ctrl-D
Ctrl-C stops a reply."""


@dataclass
class Conversation:
    """The instructions and the messages so far."""

    system: str | None
    messages: list[dict[str, str]] = field(default_factory=list)

    def all_messages(self) -> list[dict[str, str]]:
        """Return the messages as a template takes them."""
        first = [{"role": "system", "content": self.system}] if self.system else []
        return first + self.messages

    def take_back_last(self) -> str | None:
        """Remove the last message of the user, with the answer to it, and return it."""
        while self.messages:
            message = self.messages.pop()
            if message["role"] == "user":
                return message["content"]
        return None


def chat(
    model: options.DefaultModel = DEFAULT_MODEL,
    system: sampling.System = None,
    max_tokens: sampling.MaxTokens = 1024,
    temperature: sampling.Temperature = 0.7,
    top_k: sampling.TopK = 40,
    top_p: sampling.TopP = 0.95,
    min_p: sampling.MinP = 0.0,
    repetition_penalty: sampling.RepetitionPenalty = 1.0,
    seed: sampling.Seed = None,
    stop: sampling.Stop = None,
    json: options.Json = False,
    threads: options.Threads = None,
    max_model_len: options.MaxModelLen = None,
    dtype: options.Dtype = "auto",
    kv_cache_dtype: options.KVCacheDtype = "auto",
    implementation: options.Implementation = None,
    max_weight_memory: options.MaxWeightMemory = None,
    cache_dir: options.CacheDir = None,
    offline: options.Offline = False,
) -> None:
    """Talk with a model.

    /help lists the commands; Ctrl-C stops a reply and not the program. From a pipe each line is a message; with
    --json each reply is one line of JSON, as generate prints it.
    """
    settings = {"max_num_seqs": 1, "max_model_len": max_model_len, "dtype": dtype, "implementation": implementation}
    settings |= {"kv_cache_dtype": kv_cache_dtype, "max_weight_memory": max_weight_memory}
    llm, load_seconds = load(model, threads=threads, cache_dir=cache_dir, offline=offline, **settings)
    sampled = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p, "stop": stop}
    sampled |= {"max_tokens": max_tokens, "repetition_penalty": repetition_penalty}
    conversation = Conversation(system)
    chat_prompt(llm, [{"role": "user", "content": ""}])  # refuse a file without a template before the first message
    seeds = itertools.count(secrets.randbits(32) if seed is None else seed)
    for message in _messages(conversation):
        params = sampling.params(**sampled, seed=next(seeds))
        _answer(llm, conversation, message, params, load_seconds, json)


def _messages(conversation: Conversation) -> Iterator[str]:
    """Give the messages to answer until the user leaves, and carry out the commands between them."""
    for line in _lines():
        word, _, rest = line.strip().partition(" ")
        match word:
            case "":
                pass
            case "/exit" | "/quit":
                return
            case "/help":
                _note(HELP)
            case "/reset":
                conversation.messages.clear()
                _note("(the conversation is forgotten)")
            case "/system":
                conversation.system = rest.strip() or None
                conversation.messages.clear()
                _note("(the instructions are set)" if conversation.system else "(no instructions)")
            case "/retry":
                message = conversation.take_back_last()
                if message is None:
                    _note("(there is no message to answer again)")
                else:
                    yield message
            case _ if word.startswith("/"):
                _note(f"(unknown command {word}; /help lists them)")
            case _:
                yield line


def _lines() -> Iterator[str]:
    """Read lines until the end of the input; on a terminal with editing and history."""
    interactive = sys.stdin.isatty() and sys.stdout.isatty()
    if interactive:
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401 - importing it is what gives input() editing and history
        _note("Talk to the model; /help lists the commands, /exit or Ctrl-D leaves.")
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")  # bytes that are no UTF-8 are refused line by line
    while True:
        try:
            line = input("> " if interactive else "")
        except EOFError:
            return
        except KeyboardInterrupt:
            if not interactive:
                raise
            _note("\n(/exit or Ctrl-D leaves)")
            continue
        yield line


def _note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _answer(
    llm: "LLM",
    conversation: Conversation,
    message: str,
    params: "SamplingParams",
    load_seconds: float,
    json: bool,
) -> None:
    """Stream the answer and add both to the conversation; what cannot be answered is said and leaves no trace."""
    conversation.messages.append({"role": "user", "content": message})
    try:
        check_utf8(message, "a message")
        prompt = chat_prompt(llm, conversation.all_messages())
        with stop_on_interrupt() as stopped:
            write = None if json else _write
            reply = stream_reply(llm, prompt, params, load_seconds=load_seconds, write=write, stopped=stopped)
    except ValueError as error:
        conversation.messages.pop()
        _note(f"realm: {sentence(error)}")
        return
    conversation.messages.append({"role": "assistant", "content": reply.text})
    if json:
        print_json(reply.as_json(), indent=None)
    else:
        print(flush=True)


def _write(piece: str) -> None:
    print(piece, end="", flush=True)
