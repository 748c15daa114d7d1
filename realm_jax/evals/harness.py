"""The model that lm-evaluation-harness (EleutherAI, `lm_eval`) knows as `realm`: any GGUF file, in batches."""

# pyright: reportMissingImports=false
from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import lm_eval.models  # noqa: F401 - lm_eval lists its own models only where none is registered yet
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from realm_jax.engine.likelihood import Pair
from realm_jax.evals.generation import generation_request
from realm_jax.llm import LLM
from realm_jax.outputs import ScoreOutput
from realm_jax.tokenizer.errors import ChatTemplateError

_log = logging.getLogger(__name__)
_GENERATED = 256  # tokens at most where neither task nor caller says, as in the harness's own models

TokenRequest = tuple[tuple[str, str] | None, list[int], list[int]]


@register_model("realm")
class RealmLM(TemplateLM):
    """A GGUF file for the harness: `lm_eval --model realm --model_args pretrained=model.gguf`.

    Scores, windows and cuts are those of the harness's own `hf` model in float32. All requests of a kind are computed
    together by continuous batching, so that `batch_size` is only the number of sequences in a step.
    """

    def __init__(
        self,
        pretrained: str | Path | None = None,
        *,
        model: str | Path | None = None,
        max_length: int | None = None,
        max_gen_toks: int | None = None,
        prefix_token_id: int | None = None,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
        device: str | None = None,
        **settings: Any,
    ) -> None:
        """Load the model.

        Args:
            pretrained: the model, by any name that `LLM` takes; `model` is the same argument.
            model: see `pretrained`.
            max_length: `max_model_len` by the harness's name.
            max_gen_toks: tokens to generate where a task does not say; None for 256, or half the context.
            prefix_token_id: what precedes a text without context; None for the begin token, else the end token.
            batch_size: sequences computed together; 1, the harness's default, and "auto" leave it to `LLM`.
            max_batch_size: for "auto".
            device: not used: the harness passes "cuda:0" where nobody asked for it. JAX chooses; see JAX_PLATFORMS.
            settings: further arguments of `LLM`.
        """
        super().__init__()
        # The harness forks to estimate standard errors unless told not to; a process with JAX's threads must not.
        os.environ.setdefault("DISABLE_MULTIPROC", "1")
        source = pretrained or model
        if source is None:
            raise ValueError("--model realm needs a model; add --model_args pretrained=PATH_OR_NAME")
        del device
        sequences = _sequences(batch_size, max_batch_size)
        if sequences is not None:
            settings.setdefault("max_num_seqs", sequences)
        if max_length is not None:
            settings["max_model_len"] = int(max_length)
        self.llm = LLM(source, **{"quiet": True, **settings})
        if self.llm.tokenizer is None:
            raise ValueError(f"{self.llm.path} has no tokenizer, and tasks are texts; choose a file with one")
        self.tokenizer = self.llm.tokenizer
        self._encoder = self.llm.pair_encoder
        self._prefix_token_id = prefix_token_id
        self.max_gen_toks = min(_GENERATED, self.max_length // 2) if max_gen_toks is None else int(max_gen_toks)
        self._template: str | None = None

    @property
    def max_length(self) -> int:
        """Positions that the model may compute."""
        return self.llm.max_model_len

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        eos = self.tokenizer.eos_id
        return self.prefix_token_id if eos is None else eos

    @property
    def prefix_token_id(self) -> int:
        """The token that stands before a text without context."""
        return self._encoder.prefix_token_id if self._prefix_token_id is None else self._prefix_token_id

    @property
    def tokenizer_name(self) -> str:
        """Names the file in the harness's cache of requests."""
        return str(self.llm.path).replace("/", "__")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """The tokens of a text, with the begin token as the file asks, or as told."""
        return self._encoder.text(string, add_begin=add_special_tokens)

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        pair = self._encoder.pair(context, continuation)
        return pair.context, pair.continuation

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The source of the file's template, for the harness's records; a name chooses one of several."""
        if not chat_template:
            return None
        sources = {} if self.tokenizer.chat_template is None else self.tokenizer.chat_template.sources
        name = "default" if chat_template is True else chat_template
        if name not in sources:
            raise ValueError(f"the file's chat templates are {', '.join(sorted(sources)) or 'none'}, got {name!r}")
        self._template = name
        return sources[name]

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The conversation as a prompt; without a generation prompt its last message is left open, to go on."""
        template = self.tokenizer.chat_template
        if template is None:
            raise ValueError(f"{self.llm.path} has no chat template; run without --apply_chat_template")
        options = {"add_generation_prompt": add_generation_prompt, "template": self._template}
        try:
            text = template.render(chat_history, **options)
        except ChatTemplateError as error:
            others = [message for message in chat_history if message["role"] != "system"]
            if len(others) == len(chat_history):
                raise
            _log.warning("%s; its system message is left out", error)
            text = template.render(others, **options)
        return text if add_generation_prompt else _left_open(text, chat_history[-1]["content"])

    def loglikelihood_rolling(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[float]:
        """The log-probability of whole texts, each token given as much before it as the model takes."""
        windows: list[TokenRequest] = []
        owners: list[int] = []
        for number, request in enumerate(requests):
            tokens = self.tok_encode(request.args[0])
            pairs = get_rolling_token_windows(tokens, self.prefix_token_id, self.max_length, 1)
            windows.extend((None, context, wanted) for context, wanted in map(make_disjoint_window, pairs))
            owners.extend([number] * (len(windows) - len(owners)))
        totals = [0.0] * len(requests)
        for number, (logprob, _) in zip(owners, self._loglikelihood_tokens(windows, disable_tqdm), strict=True):
            totals[number] += logprob
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def _loglikelihood_tokens(
        self, requests: Sequence[TokenRequest], disable_tqdm: bool = False, **others: Any
    ) -> list[tuple[float, bool]]:
        pairs = [Pair(context=context, continuation=continuation) for _, context, continuation in requests]
        scores = self.llm.score_tokens(pairs, truncate=True, use_tqdm=not disable_tqdm)
        _warn_of_cuts(scores, self.max_length)
        answers = [(score.logprob, score.is_greedy) for score in scores]
        for (texts, _, _), answer in zip(requests, answers, strict=True):
            if texts is not None:
                self.cache_hook.add_partial("loglikelihood", texts, answer)
        return answers

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        """What the model writes after each context, up to a stop string; the left of a long context is cut."""
        made = []
        for request in requests:
            context, options = cast("tuple[str, dict[str, Any]]", request.args)
            tokens = self.tok_encode(context) or [self.prefix_token_id]
            made.append(generation_request(tokens, options, self.max_length, self.max_gen_toks))
        prompts, params = [prompt for prompt, _ in made], [params for _, params in made]
        outputs = self.llm.generate(prompts, params, use_tqdm=not disable_tqdm)
        texts = [output.outputs[0].text for output in outputs]
        for request, text in zip(requests, texts, strict=True):
            self.cache_hook.add_partial("generate_until", request.args, text)
        return texts

    def get_model_info(self) -> Mapping[str, Any]:
        """What the harness records beside its results."""
        llm = self.llm
        return {
            "model_file": str(llm.path),
            "model_architecture": llm.config.architecture,
            "model_dtype": llm.dtype.name,
            "implementation": llm.implementation,
            "kv_cache_dtype": llm.kv_cache_dtype,
            "max_length": self.max_length,
        }


def _sequences(batch_size: int | str | None, max_batch_size: int | None) -> int | None:
    """How many sequences the harness's options ask for, None where they leave it open."""
    if batch_size in (None, 1, "1") or str(batch_size).startswith("auto"):
        return max_batch_size
    return int(batch_size)


def _left_open(text: str, content: str) -> str:
    """A rendered conversation up to the end of its last message's content."""
    bare = content.strip()
    start = text.rfind(bare)
    if start < 0:
        raise ValueError("the chat template changes the last message, so that it cannot be continued; drop gen_prefix")
    whole = content.lstrip()
    return text[: start + len(whole if text[start:].startswith(whole) else bare)]


def _warn_of_cuts(scores: Sequence[ScoreOutput], max_length: int) -> None:
    cut = sum(score.num_dropped_tokens > 0 for score in scores)
    if cut:
        _log.warning("%d of %d contexts did not fit %d tokens and lost their left", cut, len(scores), max_length)


def main() -> None:
    """The harness's own command line, which knows `realm` now."""
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()
