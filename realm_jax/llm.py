"""LLM: load a GGUF model once, then generate, chat, score and look inside."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from realm_jax import gguf, models
from realm_jax.activations import Activations, Positions, stack, wanted_rows
from realm_jax.collector import without_collections
from realm_jax.compilation_cache import enable_compilation_cache
from realm_jax.engine import scoring
from realm_jax.engine.embedding import embed
from realm_jax.engine.engine import Engine, EngineConfig
from realm_jax.engine.likelihood import Continuation, Pair, PairEncoder, score_pairs
from realm_jax.engine.llm_engine import LLMEngine
from realm_jax.engine.memory import CacheSize, cache_size, group_sizes, memory_at_hand
from realm_jax.engine.perplexity import perplexity_of, sliding_windows
from realm_jax.engine.request import Prompt, Request, RequestFactory
from realm_jax.engine.runner import Runner
from realm_jax.engine.sequence import Sequence as Sample
from realm_jax.engine.stats import StepTrace
from realm_jax.engine.streaming import StreamingRunner
from realm_jax.models import CausalLM, ForwardBatch
from realm_jax.nn.taps import NO_TAPS, Edits, Taps
from realm_jax.ops import KV_CACHE_DTYPES, KVCache, fastest_implementation
from realm_jax.ops.backends import why_slow
from realm_jax.outputs import PerplexityOutput, RequestOutput, ScoreOutput
from realm_jax.sampling import SamplingParams
from realm_jax.sharding import MeshConfig
from realm_jax.shards import ActivationShards, write_shards
from realm_jax.sources import Progress, default_cache_dir, resolve
from realm_jax.tokenizer import Tokenizer

# Decode steps that run on the device without the host read about this many bytes of weights, and are at most so many:
# a few hundredths of a second on a CPU.
_BYTES_IN_ONE_GO = 2 * 10**9
_MOST_DECODE_STEPS, _CROWDED_DECODE_STEPS = 16, 8

_DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
Messages = Sequence[Mapping[str, Any]]
_T = TypeVar("_T")


class LLM:
    """A language model with its tokenizer and KV cache. Names and meaning follow vLLM's offline API.

    `model` is a path, `hf:owner/repo/file.gguf`, `hf:owner/repo:Q4_K_M`, or a name of the catalogue ("smollm2").

    Args:
        max_model_len: tokens of prompt and output together; None for the smaller of the trained context and what
            fits in memory, printed to stderr unless `quiet`.
        max_num_seqs: sequences that are computed together.
        max_num_batched_tokens: tokens of a step, of prompts and decoding sequences together.
        enable_prefix_caching: whether prompts take over what was computed of earlier ones that begin alike.
        dtype: of activations: "float32", "bfloat16", or "auto": bfloat16 on accelerators, else float32.
        kv_cache_dtype: "float32", "float16", "bfloat16", "q8_0" (8 bits), or "auto": float16 with implementation "cpu",
            else `dtype`.
        implementation: "xla" computes in `dtype` and can be exported; "cpu" multiplies in native
            kernels with activations in 8 bits; "mps" computes with MLX's kernels on an Apple GPU; "triton" and "tpu"
            with Pallas kernels on an NVIDIA GPU or a TPU, "triton_int8" with a prompt's activations in 8 bits; None
            for the fastest of the first three that is available.
        mesh: over how many devices, and how, the model and its work are split, with any implementation but "mps"; None
            for one device.
        seed: what requests without a seed of their own derive theirs from.
        kv_cache_memory: bytes for the KV cache; None as `engine.memory.cache_size` says.
        max_weight_memory: bytes for the weights, for models larger than memory: they stay in the file, and layers
            that do not fit are read anew in every step. It bounds an accelerator's memory where JAX's device is one;
            the file stays with the host. None to load all of them.
        block_size: positions of a cache block.
        cache_dir: where downloads and compiled programs are kept; a compilation cache that the user has set stays.
        offline: never touch the network.
        progress: told how far a download has come.
        quiet: print nothing.
    """

    _open: Sequence[Request] = ()  # what a stream or a call that generates is working on

    @without_collections()
    def __init__(
        self,
        model: str | Path,
        *,
        max_model_len: int | None = None,
        max_num_seqs: int = 16,
        max_num_batched_tokens: int = 512,
        enable_prefix_caching: bool = True,
        dtype: str = "auto",
        kv_cache_dtype: str = "auto",
        implementation: str | None = None,
        mesh: MeshConfig | None = None,
        seed: int = 0,
        kv_cache_memory: int | None = None,
        max_weight_memory: int | None = None,
        block_size: int = 64,
        cache_dir: str | Path | None = None,
        offline: bool = False,
        progress: Progress | None = None,
        quiet: bool = False,
    ) -> None:
        """Load the model; the class says what the arguments mean."""
        self.path = resolve(model, cache_dir=cache_dir, offline=offline, progress=progress)
        enable_compilation_cache(cache_dir or default_cache_dir())
        file = gguf.open(self.path)
        self.dtype = _dtype(dtype)
        self.implementation = implementation or fastest_implementation()
        if implementation is None and not quiet and (why := why_slow()) is not None:
            print(f"realm: computing through XLA, many times slower than native kernels: {why}", file=sys.stderr)
        self.kv_cache_dtype = _kv_cache_dtype(kv_cache_dtype, self.implementation, self.dtype)
        limits: Any = {"max_num_seqs": max_num_seqs, "max_num_batched_tokens": max_num_batched_tokens}
        self._engine_config = EngineConfig(**limits, prefix_caching=enable_prefix_caching)
        size = self._load(file, max_model_len, block_size, kv_cache_memory, max_weight_memory, mesh)
        self.max_model_len = size.max_model_len
        if max_model_len is None and not quiet:
            trained = self.config.context_length
            print(f"realm: max_model_len is {size.max_model_len} of {trained} trained", file=sys.stderr)
        self.tokenizer = Tokenizer.from_gguf(file.metadata) if "tokenizer.ggml.tokens" in file.metadata else None
        self._engine = self.new_engine()
        sizes = {"vocab_size": self.config.vocab_size, "max_model_len": size.max_model_len}
        self._requests = RequestFactory(self.tokenizer, **sizes, seed=seed)

    def _load(
        self,
        file: gguf.GGUFFile,
        max_model_len: int | None,
        block_size: int,
        kv_cache_memory: int | None,
        max_weight_memory: int | None,
        mesh: MeshConfig | None,
    ) -> CacheSize:
        """Set `config`, `model` and `runner`, and return what cache goes with them."""
        devices = None if mesh is None else mesh.mesh()
        self.config = models.config_of(file, max_model_len=max_model_len)
        options: Any = {"dtype": self.dtype, "implementation": self.implementation, "device": devices}
        self._streams = options["mapped"] = max_weight_memory is not None
        if self._streams and mesh is not None:
            raise ValueError("max_weight_memory and mesh must not be given together; leave one of them out")
        self.model = models.build(file, config=self.config, **options)
        limits = self._engine_config
        ahead = limits.max_num_batched_tokens
        size = cache_size(
            trained=self.config.context_length,
            wanted=max_model_len,
            groups=group_sizes(self.model.cache_spec(), block_size, self.kv_cache_dtype, ahead=ahead),
            max_num_seqs=limits.max_num_seqs,
            block_size=block_size,
            budget=kv_cache_memory,
            at_hand=memory_at_hand(_device_of(self.model)),
        )
        config = models.config_of(file, max_model_len=size.max_model_len)
        if config != self.config:  # a rotation that depends on the context, which memory has cut
            self.config, self.model = config, models.build(file, config=config, **options)
        cache = {"block_size": block_size, "kv_cache_dtype": self.kv_cache_dtype}
        self.runner: Runner = (
            Runner(self.model, size, **cache, mesh=devices)
            if max_weight_memory is None
            else StreamingRunner(self.model, size, max_weight_memory=max_weight_memory, **cache)
        )
        return size

    def new_engine(self, *, trace: StepTrace | None = None, **changes: Any) -> Engine:
        """An engine of its own over the model's cache; one is used at a time.

        `trace` is told of every launch; `changes` are fields of EngineConfig.
        """
        weights = sum(leaf.nbytes for leaf in self.runner.leaves)
        # A power of two. Large models spend little of a step between kernels, and tokens of theirs come late enough.
        steps = 1 << max(0, (_BYTES_IN_ONE_GO // weights).bit_length() - 1)
        usual = {"decode_steps": min(steps, _MOST_DECODE_STEPS), "crowded_decode_steps": _CROWDED_DECODE_STEPS}
        if self._streams:  # the host gathers the embeddings of tokens, so it must know them before a launch
            usual = {"decode_steps": 1, "async_scheduling": False}
        elif "decode_steps" in changes:
            usual = {}
        changes = {**usual, **changes}
        return Engine(self.runner, dataclasses.replace(self._engine_config, **changes), trace=trace)

    def llm_engine(self, *, trace: StepTrace | None = None, **changes: Any) -> LLMEngine:
        """An engine for requests that come and go, over the model's cache; do not generate by other calls meanwhile.

        `trace` and `changes` as in `new_engine`.
        """
        return LLMEngine(self.new_engine(trace=trace, **changes), self._requests)

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = True,
        edits: Edits | Sequence[Edits | None] | None = None,
    ) -> list[RequestOutput]:
        """Continue every prompt; results come in the order of the prompts.

        A prompt is a text, `{"prompt": text}` or `{"prompt_token_ids": [...]}`.

        `edits` maps activation points to pure jax functions that replace them, for all prompts, or is one such mapping
        (or None) for each prompt. A function is given the activation of one step, `[tokens, ...]`: tokens of all
        running sequences, padded at the end, of which those of other requests keep theirs. Functions are compared by
        identity: each new set of them compiles a new program, and each function of it is computed in every step.
        """
        listed = [prompts] if isinstance(prompts, str | Mapping) else list(prompts)
        params = _for_each(listed, "sampling_params", SamplingParams() if sampling_params is None else sampling_params)
        if edits is None or isinstance(edits, Mapping):
            taps, ids = Taps.of(edits=edits), [0] * len(listed)
        else:
            taps, ids = Taps.of_each(_for_each(listed, "edits", edits))
        self._check(taps)
        requests = [self._requests.make(prompt, p, edit_id=i) for prompt, p, i in zip(listed, params, ids, strict=True)]
        total = sum(len(request.sequences) for request in requests)
        with _progress_bar(total, use_tqdm) as bar, closing(self._run(requests, taps)) as steps:
            for stepped in steps:
                bar.update(sum(sample.finished for sample in stepped))
        return [request.output() for request in requests]

    def chat(
        self,
        messages: Messages | Sequence[Messages],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = True,
        tools: list[dict[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        edits: Edits | Sequence[Edits | None] | None = None,
    ) -> list[RequestOutput]:
        """Answer a conversation, or each of several, through the chat template of the file."""
        conversations: Any = [messages] if messages and isinstance(messages[0], Mapping) else messages
        options = {"tools": tools, "add_generation_prompt": add_generation_prompt, **(chat_template_kwargs or {})}
        prompts = [self._requests.chat_prompt(conversation, **options) for conversation in conversations]
        return self.generate(prompts, sampling_params, use_tqdm=use_tqdm, edits=edits)

    def stream(
        self,
        prompt: Prompt,
        sampling_params: SamplingParams | None = None,
        *,
        edits: Edits | None = None,
    ) -> Generator[RequestOutput, None, None]:
        """Continue one prompt; yields the output so far after every token, or what else `output_kind` asks for.

        Stopping early frees its blocks. One call runs at a time: any other call that generates ends an open stream,
        whose next output is then a RuntimeError.
        """
        request = self._requests.make(prompt, SamplingParams() if sampling_params is None else sampling_params)
        return self._stream(request, self._taps(edits=edits))

    def _stream(self, request: Request, taps: Taps) -> Generator[RequestOutput, None, None]:
        with closing(self._run([request], taps)) as steps:
            for _ in steps:
                if output := request.news():
                    yield output

    def score(
        self,
        prompts: Prompt | Sequence[Prompt],
        continuations: Continuation | Sequence[Continuation],
        *,
        truncate: bool = False,
        use_tqdm: bool = True,
    ) -> list[ScoreOutput]:
        """How probable each continuation is after its prompt; one prompt may have several continuations.

        A continuation is a text or a list of token ids. Texts become tokens as in lm-evaluation-harness: those of
        prompt and continuation together, from where the prompt's own end, with its last spaces counted to the
        continuation; an empty prompt is the begin token. What is longer than max_model_len is refused, or loses the
        left of its prompt with `truncate`. Equal prompts are computed once, and equal beginnings as a rule.
        """
        pairs = self.pair_encoder.pairs(prompts, continuations)
        return self.score_tokens(pairs, truncate=truncate, use_tqdm=use_tqdm)

    def score_tokens(
        self, pairs: Sequence[Pair], *, truncate: bool = False, use_tqdm: bool = True
    ) -> list[ScoreOutput]:
        """The same for pairs of tokens, which `pair_encoder` makes of texts."""
        fitted = [pair.fitted(self.max_model_len, truncate=truncate) for pair in pairs]
        with _progress_bar(len(pairs), use_tqdm) as bar:
            return score_pairs(self._idle_engine(), fitted, bar.update)

    @property
    def pair_encoder(self) -> PairEncoder:
        """Makes tokens to score of texts."""
        return PairEncoder(self.tokenizer, self._requests)

    def perplexity(
        self,
        text: str | Sequence[int],
        *,
        stride: int | None = None,
        max_length: int | None = None,
        use_tqdm: bool = True,
    ) -> PerplexityOutput:
        """The perplexity of a text, or of token ids, by windows of `max_length` tokens that slide by `stride`.

        `max_length` None: max_model_len. `stride` None: half of it, so that all but the text's beginning is predicted
        from that much context or more. See `engine.perplexity.sliding_windows`.
        """
        ids = (
            self.pair_encoder.text(text)
            if isinstance(text, str)
            else self._requests.tokenise({"prompt_token_ids": text})[1]
        )
        length = self.max_model_len if max_length is None else max_length
        if length > self.max_model_len:
            raise ValueError(f"max_length must be at most max_model_len = {self.max_model_len}, got {length}")
        windows = sliding_windows(ids, max_length=length, stride=max(1, length // 2) if stride is None else stride)
        return perplexity_of(self.score_tokens(list(windows), use_tqdm=use_tqdm))

    def embed(self, prompts: Prompt | Sequence[Prompt], *, pooling: str = "mean", normalize: bool = True) -> np.ndarray:
        """`float32[prompts, hidden]`: a vector for each prompt, of the activations "final_norm".

        `pooling`: their "mean" over the prompt, or those of its "last" or its first token ("cls"). `normalize` scales
        each vector to length 1.
        """
        listed = [prompts] if isinstance(prompts, str | Mapping) else prompts
        token_ids = [self._requests.encode(prompt)[1] for prompt in listed]
        return embed(self.runner, token_ids, pooling, normalize=normalize)

    def logits(self, token_ids: Sequence[int], *, edits: Edits | None = None) -> np.ndarray:
        """`float32[T, vocab]`: the logits after each of T tokens, computed in a cache of their own.

        An edit is given 512 tokens at a time, padded at the end, so that row t is position t of a prompt up to there.
        """
        return scoring.sequence_logits(self.runner, self._checked(token_ids), taps=self._taps(edits=edits))

    def model_inputs(self, token_ids: Sequence[int]) -> tuple[ForwardBatch, list[KVCache]]:
        """What `llm.model(batch, cache)` takes to compute one whole sequence and the logits of all its positions.

        For transformations of the model itself: `nnx.split(llm.model)`, then `jax.jit`, `jax.vmap` or `jax.grad` of a
        function that merges it and calls it. `dataclasses.replace(batch, input_embeds=...)` replaces the embeddings
        `llm.model.embed(batch)`. Nothing is padded: each length is a program of its own.

        ValueError with `max_weight_memory`: the model's weights are not in memory then.
        """
        if self._streams:
            raise ValueError("model_inputs needs all weights in memory; load the model without max_weight_memory")
        return scoring.whole_sequence(self.runner, self._checked(token_ids))

    def capture(
        self,
        prompts: Prompt | Sequence[Prompt],
        points: str | Sequence[str],
        *,
        positions: Positions = "all",
        edits: Edits | None = None,
    ) -> Activations:
        """Read activations at named points, such as "layers.*.resid_post", without keeping what was not asked for.

        See `activation_points` for the names and `Activations` for the shapes.
        """
        token_ids, rows = self._to_capture(prompts, points, positions)
        parts = scoring.capture(self.runner, token_ids, rows, self._taps(points, edits))
        return stack(parts, token_ids, squeeze=positions == "last")

    def capture_to(
        self,
        folder: str | Path,
        prompts: Prompt | Sequence[Prompt],
        points: str | Sequence[str],
        *,
        positions: Positions = "all",
        edits: Edits | None = None,
        shard_prompts: int = 256,
        use_tqdm: bool = True,
    ) -> ActivationShards:
        """Write the activations of any number of prompts to a folder; see `capture`, and `ActivationShards` to read.

        Interrupted and called again with the same arguments, it goes on where it was. That edits are the same, and
        the file's contents, is not checked.
        """
        token_ids, rows = self._to_capture(prompts, points, positions)
        taps = self._taps(points, edits)

        def captured(numbers: Sequence[int]) -> list[dict[str, np.ndarray]]:
            return scoring.capture(self.runner, [token_ids[i] for i in numbers], [rows[i] for i in numbers], taps)

        job = {"model": self.path.name, "points": list(taps.capture), "positions": str(positions)}
        with _progress_bar(len(token_ids), use_tqdm) as bar:
            return write_shards(folder, token_ids, captured, job=job, shard_prompts=shard_prompts, progress=bar.update)

    def _to_capture(
        self, prompts: Prompt | Sequence[Prompt], points: str | Sequence[str], positions: Positions
    ) -> tuple[list[list[int]], list[list[int]]]:
        """The tokens of each prompt, and which of its positions are wanted."""
        listed = [prompts] if isinstance(prompts, str | Mapping) else list(prompts)
        token_ids = [self._requests.encode(prompt)[1] for prompt in listed]
        if not token_ids or not points:
            raise ValueError("prompts and points must name at least one each; llm.activation_points lists the points")
        rows = [wanted_rows(positions, len(ids)) for ids in token_ids]
        if not all(rows):
            raise ValueError(f"positions {positions!r} chooses none of a prompt's tokens; widen it")
        return token_ids, rows

    @cached_property
    def activation_points(self) -> tuple[str, ...]:
        """The names of every activation that can be captured or edited."""
        return scoring.activation_points(self.runner)

    def _idle_engine(self, taps: Taps = NO_TAPS) -> Engine:
        """The engine with these edits, once an open stream has ended."""
        self._engine.abort([sample for request in self._open for sample in request.sequences])
        self._open = ()
        self._engine.use(taps)
        return self._engine

    def _run(self, requests: Sequence[Request], taps: Taps) -> Generator[list[Sample], None, None]:
        """Generate; yields the samples that got a token after every step."""
        samples = [sample for request in requests for sample in request.sequences]
        engine, self._open = self._idle_engine(taps), requests
        try:
            for sample in samples:
                engine.add(sample)
            engine.warm_up(samples)
            while self._open is requests and engine.has_work:
                if stepped := engine.step():
                    yield stepped
            if any(sample.finish_reason == "abort" for sample in samples):
                raise RuntimeError("another call ended this stream; finish it first, or pass both prompts at once")
        finally:
            engine.abort(samples)
            if self._open is requests:
                self._open = ()

    def _taps(self, points: str | Sequence[str] = (), edits: Edits | None = None) -> Taps:
        taps = Taps.of(points, edits)
        self._check(taps)
        return taps

    def _check(self, taps: Taps) -> None:
        if taps.capture or taps.edits:
            taps.check(self.activation_points)

    def _checked(self, token_ids: Sequence[int]) -> list[int]:
        return self._requests.encode({"prompt_token_ids": list(token_ids)})[1]

    def __repr__(self) -> str:
        return f"LLM({str(self.path)!r}, max_model_len={self.max_model_len}, dtype={self.dtype.name!r})"


def _device_of(model: CausalLM) -> Any:
    """The device that a model's arrays lie on, or one of them."""
    arrays = (leaf for leaf in jax.tree.leaves(nnx.state(model)) if isinstance(leaf, jax.Array))
    return next(iter(next(arrays).devices()))


def _kv_cache_dtype(name: str, implementation: str, dtype: np.dtype) -> str:
    if name == "auto":
        return "float16" if implementation in ("cpu", "null") else dtype.name
    if name not in KV_CACHE_DTYPES:
        raise ValueError(f"kv_cache_dtype must be auto or one of {', '.join(KV_CACHE_DTYPES)}, got {name!r}")
    return name


def _dtype(name: str) -> np.dtype:
    if name == "auto":
        name = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    if name not in _DTYPES:
        raise ValueError(f'dtype must be "auto", "float32" or "bfloat16", got {name!r}')
    return jnp.dtype(_DTYPES[name])


def _for_each(prompts: Sequence[Prompt], name: str, given: _T | Sequence[_T]) -> Sequence[_T]:
    """What was given for all prompts or for each, for each."""
    if not isinstance(given, Sequence):
        return [given] * len(prompts)
    if len(given) != len(prompts):
        raise ValueError(f"{name} must be one for all prompts or one for each of {len(prompts)}, got {len(given)}")
    return given


def _progress_bar(total: int, wanted: bool) -> Any:
    from tqdm import tqdm

    # None leaves the bar out where stderr is not a terminal.
    return tqdm(total=total, desc="samples", unit="sample", disable=None if wanted else True)
