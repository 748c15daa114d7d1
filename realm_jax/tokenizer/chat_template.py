"""Chat templates: messages to the prompt text that a model was trained on."""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from realm_jax.tokenizer.errors import ChatTemplateError
from realm_jax.tokenizer.template_bounds import Meter, TemplateLimits

__all__ = ["ChatTemplate", "read_chat_template"]

KEY = "tokenizer.chat_template"
DEFAULT = "default"
TOOL_USE = "tool_use"
MAX_SOURCE = 512 * 1024


class ChatTemplate:
    """A file's chat templates, by name; the one without a name is `default`.

    Templates are programs out of a downloaded file. They run in jinja2's immutable sandbox within
    `limits`; whatever goes wrong in one ends in `ChatTemplateError`.
    """

    def __init__(
        self,
        sources: Mapping[str, str],
        *,
        tokens: Mapping[str, str] | None = None,
        limits: TemplateLimits | None = None,
    ) -> None:
        """`sources`: template texts by name. `tokens`: `bos_token`, `eos_token` and their like, as text."""
        from realm_jax.tokenizer.template_sandbox import TemplateSandbox

        self.sources = dict(sources)
        self._tokens = dict(tokens or {})
        self._limits = limits or TemplateLimits()
        self._sandbox = TemplateSandbox()
        self._compiled: dict[str, Any] = {}

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        template: str | None = None,
        **kwargs: Any,
    ) -> str:
        """Return the prompt for `messages`, each with `role` and `content` (and what else the template reads).

        `tools` are JSON schemas of functions. `template` chooses one by name; by default it is `tool_use`
        when there are tools and the file has it. Other keywords become variables of the template.
        """
        _require_messages(messages)
        name = template or (TOOL_USE if tools and TOOL_USE in self.sources else DEFAULT)
        variables = {
            **self._tokens,
            "messages": messages,
            "tools": tools,
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
            "raise_exception": _raise_exception,
            "strftime_now": _strftime_now,
            **kwargs,
        }
        with self._sandbox.metered(self._limits) as meter:
            try:
                return _collect(self._template(name).generate(variables), meter)
            except ChatTemplateError:
                raise
            except Exception as error:  # a template can raise anything that Python can
                raise ChatTemplateError(f"the chat template failed: {type(error).__name__}: {error}") from error

    def _template(self, name: str) -> Any:
        if name not in self.sources:
            raise ChatTemplateError(f"the file's chat templates are {', '.join(sorted(self.sources))}, got {name!r}")
        if name not in self._compiled:
            source = self.sources[name]
            if len(source) > MAX_SOURCE:
                raise ChatTemplateError(f"a chat template must have at most {MAX_SOURCE} characters, got {len(source)}")
            self._compiled[name] = self._sandbox.from_string(self._sandbox.with_checks(source))
        return self._compiled[name]


def _collect(chunks: Iterable[str], meter: Meter) -> str:
    parts: list[str] = []
    for chunk in chunks:
        meter.write(len(chunk))
        parts.append(chunk)
    return "".join(parts)


def _require_messages(messages: object) -> None:
    if isinstance(messages, (str, bytes)) or not isinstance(messages, Sequence):
        raise ChatTemplateError(f"messages must be a list of mappings, got {type(messages).__name__}")
    for i, message in enumerate(messages):
        if not isinstance(message, Mapping) or "role" not in message:
            raise ChatTemplateError(f"messages[{i}] must be a mapping with a role, got {message!r:.80}")


def _raise_exception(message: str) -> None:
    raise ChatTemplateError(f"the chat template refuses these messages: {message}")


def _strftime_now(format: str) -> str:
    return datetime.datetime.now().strftime(format)


def read_chat_template(metadata: Mapping[str, Any], tokens: Mapping[str, str]) -> ChatTemplate | None:
    """The templates of a file: `tokenizer.chat_template` and `tokenizer.chat_template.NAME`; None if it has none."""
    sources = {
        key.removeprefix(KEY).removeprefix(".") or DEFAULT: metadata[key]
        for key in metadata
        if key == KEY or key.startswith(KEY + ".")
    }
    sources = {name: source for name, source in sources.items() if isinstance(source, str) and source}
    return ChatTemplate(sources, tokens=tokens) if sources else None
