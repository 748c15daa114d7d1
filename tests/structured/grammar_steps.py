"""What the tests of grammars share: reading masks, and decoding from random logits with the real sampling."""

import jax
import jax.numpy as jnp
import numpy as np

from realm_jax.sampling import SamplingParams, SamplingRequest, pack, plan_for, sample

NAMES = ("bytes", "pieces", "smollm2", "gemma3")

_step = jax.jit(sample, static_argnums=2)


def allowed(state, compiler) -> list[int]:
    """Return the ids of the tokens that may come next."""
    mask = compiler.new_mask(1)
    state.fill(mask[0])
    return ids_of(mask[0], compiler.vocab_size)


def ids_of(mask_row: np.ndarray, vocab_size: int) -> list[int]:
    """Return the ids whose bits are set."""
    return np.flatnonzero(np.unpackbits(mask_row.view(np.uint8), bitorder="little")[:vocab_size]).tolist()


def accept_text(state, tokenizer, text: str) -> None:
    for token in tokenizer.encode_continuation(text):
        assert state.accept(token)


def closers(tokenizer) -> dict[int, int]:
    """Return the tokens that bring an output to its end, with the weight that each deserves."""
    texts = {'"': 3, "}": 2, "]": 2, ",": 1, ":": 1}
    ids = {
        tokens[0]: weight for text, weight in texts.items() if len(tokens := tokenizer.encode_continuation(text)) == 1
    }
    return ids | dict.fromkeys(tokenizer.end_ids, 4)


def decode(tokenizer, compiler, outputs, seed: int, *, temperature: float = 1.0, limit: int = 600) -> str:
    """Decode from random logits until the grammar is finished; what closes an output grows ever likelier."""
    rng = np.random.default_rng(seed)
    params = SamplingParams(temperature=temperature, structured_outputs=outputs)
    plan, state, mask = plan_for([params]), compiler.start(outputs), compiler.new_mask(1)
    tokens: list[int] = []
    ending = closers(tokenizer)
    while not state.finished:
        assert len(tokens) < limit, tokenizer.decode(tokens)
        logits = 3 * rng.standard_normal((1, compiler.vocab_size), np.float32)
        logits[0, list(ending)] += len(tokens) / 8 * np.array(list(ending.values()))
        state.fill(mask[0])
        request = SamplingRequest(params=params, seed=seed, prompt_length=0, token_ids=tokens)
        token = int(_step(jnp.asarray(logits), pack([request], plan, mask=mask), plan).tokens[0])
        assert state.accept(token), (token, tokenizer.decode(tokens))
        tokens.append(token)
    assert state.error is None
    assert state.complete
    return b"".join(tokenizer.id_to_piece(t) for t in tokens if t not in tokenizer.end_ids).decode()
