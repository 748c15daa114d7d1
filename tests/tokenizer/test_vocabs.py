"""Tokenisation equals the ids recorded beside llama.cpp's vocabulary files, and its chat templates render."""

import datetime
import json
import os
import re
from pathlib import Path

import pytest
from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from realm_jax.tokenizer import ChatTemplate, ChatTemplateError

pytestmark = pytest.mark.vocabs

FOLDER = Path(os.environ.get("REALM_TEST_VOCABS", "~/.cache/realm-jax/vocabs")).expanduser()
NAMES = [
    "bert-bge", "command-r", "deepseek-coder", "deepseek-llm", "falcon", "gemma-4", "gpt-2", "llama-bpe", "llama-spm",
    "mpt", "phi-3", "qwen2", "qwen35", "refact", "starcoder",
]  # fmt: skip
MORE = json.loads((Path(__file__).parents[1] / "data/tokenizer/more_vocabs.json").read_text("utf-8"))
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
MESSAGES = [
    {"role": "system", "content": "Be <b>brief</b>."},
    {"role": "user", "content": "Hi & hello"},
    {"role": "assistant", "content": " Hey "},
    {"role": "user", "content": "What's the weather?"},
]
CITY = {"type": "object", "properties": {"city": {"type": "string", "description": "City"}}, "required": ["city"]}
TOOLS = [{"type": "function", "function": {"name": "weather", "description": "Now <here>", "parameters": CITY}}]
SEPARATOR = "\n__ggml_vocab_test__\n"


@pytest.fixture(scope="module", autouse=True)
def _fetched():
    if not FOLDER.is_dir():
        pytest.skip(f"no vocabularies in {FOLDER}: run `python tests/oracles/fetch_vocabs.py`")


@pytest.mark.parametrize("name", NAMES)
def test_ids_equal_those_recorded(name, tokenizer_of):
    path = FOLDER / f"ggml-vocab-{name}.gguf"
    tokenizer = tokenizer_of(path)
    texts = path.with_suffix(".gguf.inp").read_bytes().decode().split(SEPARATOR)
    lines = path.with_suffix(".gguf.out").read_text().splitlines()
    assert len(lines) in (len(texts), len(texts) - 1)  # a separator may end the file
    for text, line in zip(texts, lines, strict=False):
        ids = tokenizer.encode(text, add_special=False, parse_special=False)
        assert ids == [int(token) for token in line.split()], text


def test_every_recorded_vocabulary_is_compared():
    recorded = {path.name.removeprefix("ggml-vocab-").removesuffix(".gguf.out") for path in FOLDER.glob("*.out")}
    assert recorded == set(NAMES)


@pytest.mark.parametrize("name", MORE["names"])
def test_ids_equal_those_recorded_here(name, tokenizer_of):
    tokenizer = tokenizer_of(FOLDER / f"ggml-vocab-{name}.gguf")
    for text, *rows in MORE["rows"]:
        assert tokenizer.encode(text) == rows[MORE["names"].index(name)], text


def plain_jinja(source, tools):
    """Render without our checks, as transformers does."""

    def raise_exception(message):
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    # A tag of transformers' own that only frames what it holds.
    source = re.sub(r"(\{%-?\s*)endgeneration\b", r"\1endif", re.sub(r"(\{%-?\s*)generation\b", r"\1if true", source))
    environment.filters["tojson"] = lambda x, **options: json.dumps(x, **{"ensure_ascii": False, **options})
    return environment.from_string(source).render(
        messages=MESSAGES,
        tools=tools,
        documents=None,
        add_generation_prompt=True,
        raise_exception=raise_exception,
        strftime_now=lambda form: datetime.datetime.now().strftime(form),
        **TOKENS,
    )


@pytest.mark.parametrize("tools", [None, TOOLS], ids=["chat", "tools"])
def test_published_templates_render_as_in_plain_jinja(tools):
    paths = sorted(FOLDER.glob("templates/*.jinja"))
    assert len(paths) == 70
    rendered = 0
    for path in paths:
        template = ChatTemplate({"default": path.read_text("utf-8")}, tokens=TOKENS)
        try:
            expected = plain_jinja(template.sources["default"], tools)
        except Exception:  # the template refuses these messages, in whatever way
            with pytest.raises(ChatTemplateError):
                template.render(MESSAGES, tools=tools)
        else:
            assert template.render(MESSAGES, tools=tools) == expected, path.name
            rendered += 1
    assert rendered >= 60
