"""A hostile chat template reaches nothing, and ends soon and small."""

import re
import time

import pytest

from realm_jax.tokenizer import ChatTemplate, ChatTemplateError, TemplateLimits

LIMITS = TemplateLimits(seconds=1.0, value=1_000_000, total=20_000_000)


def attack(source, **variables):
    return ChatTemplate({"default": source}, limits=LIMITS).render([{"role": "user", "content": "x"}], **variables)


ESCAPES = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ messages.__class__ }}",
    "{{ messages[0].__init__.__globals__ }}",
    "{{ raise_exception.__globals__['__builtins__'] }}",
    "{{ strftime_now.__globals__ }}",
    "{{ namespace.__init__.__globals__ }}",
    "{{ self.__init__.__globals__ }}",
    "{{ cycler.__init__.__globals__.os }}",
    "{{ '{0.__class__}'.format(1) }}",
    "{{ (messages | attr('__class__')) }}",
    "{{ ''|map('attr', '__class__')|list }}{{ ['x'] | map(attribute='__class__') | list }}",
    "{{ range.__wrapped__ }}{{ range.__globals__ }}",
    "{{ messages.append(1) }}",
    "{{ messages[0].update({'a': 1}) }}",
    "{{ messages.clear() }}",
    "{% for m in messages %}{{ m.pop('role') }}{% endfor %}",
]


@pytest.mark.parametrize("source", ESCAPES)
def test_internals_are_out_of_reach(source):
    """Each ends in an error, or prints nothing of what it asked for."""
    try:
        text = attack(source)
    except ChatTemplateError:
        return
    assert set(re.split(r"[\[\], ]+", text)) <= {"", "Undefined"}


DOUBLING = "{% set ns = namespace(x='xxxxxxxx') %}{% for i in range(60) %}{% set ns.x = EXPR %}{% endfor %}"
NESTED_LISTS = "{% set ns = namespace(x=['x']) %}{% for i in range(60) %}{% set ns.x = EXPR %}{% endfor %}"
MILLION = "('x' * 999999)"
BOMBS = {
    "loops": "{% for a in range(99999) %}" * 3 + "{% endfor %}" * 3,
    "recursive loop": "{% for a in [1] recursive %}{{ loop([1, 1]) }}{% endfor %}",
    "recursive macro": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "endless macro": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "tests": "{{ range(99999) | select('in', range(99999) | list | reverse | list) | list | length }}",
    "long range": "{{ range(10 ** 9) | list }}",
    "output": "{% for i in range(99999) %}" * 2 + "x" * 99 + "{% endfor %}" * 2,
    "text times number": "{{ 'a' * 10 ** 10 }}",
    "number times list": "{{ (10 ** 9 * [1]) | length }}",
    "list of texts": "{{ ([" + MILLION + "] * 1000) | length }}",
    "doubling by +": DOUBLING.replace("EXPR", "ns.x + ns.x"),
    "doubling by ~": DOUBLING.replace("EXPR", "ns.x ~ ns.x"),
    "doubling by join": DOUBLING.replace("EXPR", "[ns.x, ns.x] | join"),
    "doubling by str.join": DOUBLING.replace("EXPR", "''.join([ns.x, ns.x])"),
    "doubling by format": DOUBLING.replace("EXPR", "'{0}{0}'.format(ns.x)"),
    "doubling by %": DOUBLING.replace("EXPR", "'%s%s' % (ns.x, ns.x)"),
    "doubling by replace": DOUBLING.replace("EXPR", "ns.x.replace('x', 'xx')"),
    "doubling by filter": DOUBLING.replace("EXPR", "ns.x | replace('x', 'xx')"),
    "doubling by block": "{% set ns = namespace(x='xxxxxxxx') %}{% for i in range(60) %}"
    "{% set y %}{{ ns.x }}{{ ns.x }}{% endset %}{% set ns.x = y %}{% endfor %}",
    "doubling by macro": "{% macro d(x) %}{{ x }}{{ x }}{% endmacro %}" + DOUBLING.replace("EXPR", "d(ns.x)"),
    "doubling of lists": NESTED_LISTS.replace("EXPR", "ns.x + ns.x"),
    "nested lists": NESTED_LISTS.replace("EXPR", "[ns.x, ns.x]") + "{{ ns.x }}",
    "nested tuples": NESTED_LISTS.replace("EXPR", "(ns.x, ns.x)") + "{{ ns.x }}",
    "nested mappings": NESTED_LISTS.replace("EXPR", "{'a': ns.x, 'b': ns.x}") + "{{ ns.x | tojson }}",
    "nested by dict": NESTED_LISTS.replace("EXPR", "dict(a=ns.x, b=ns.x)") + "{{ ns.x | string }}",
    "squares": "{% set ns = namespace(x=7) %}{% for i in range(60) %}{% set ns.x = ns.x * ns.x %}{% endfor %}",
    "power": "{{ 10 ** (10 ** 10) }}",
    "integer to bytes": "{{ (1).to_bytes(10 ** 9, 'big') }}",
    "padding": "{{ 'a'.ljust(10 ** 10) }}",
    "padding by name": "{{ 'a'.center(width=10 ** 10) }}",
    "zeros": "{{ '1'.zfill(10 ** 10) }}",
    "tabs": "{{ '\t\t'.expandtabs(10 ** 9) }}",
    "tabs by name": "{{ '\t'.expandtabs(tabsize=10 ** 10) }}",
    "width of %": "{{ '%9999999999d' % 1 }}",
    "width of % by argument": "{{ '%*d' % (10 ** 10, 1) }}",
    "width of format": "{{ '{:9999999999}'.format(1) }}",
    "width of format by argument": "{{ '{:{}}'.format(1, 10 ** 10) }}",
    "fields of format": "{{ ('{0}' * 200000).format(" + MILLION + ") }}",
    "fields of %": "{{ ('%(a)s' * 150000) % {'a': " + MILLION + "} }}",
    "translate": "{{ 'aaaa'.translate({97: " + MILLION + "}) }}",
    "replace": "{{ " + MILLION + ".replace('', " + MILLION + ") }}",
    "replace by name": "{{ " + MILLION + ".replace('x', new=" + MILLION + ") }}",
    "join": "{{ range(99999) | join(" + MILLION + ") }}",
    "method join": "{{ " + MILLION + ".join(['a'] * 99999) }}",
    "indent": "{{ 'a' | indent(10 ** 10) }}",
    "indent of JSON": "{{ [1] | tojson(indent=10 ** 10) }}",
    "lipsum": "{{ lipsum(10 ** 6) }}",
    "long source": "x" * (1 << 20),
    "deep source": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_defused(name):
    start = time.monotonic()
    with pytest.raises(ChatTemplateError):
        attack(BOMBS[name])
    # The limit is 1 s; the rest is what one step may take on a busy machine.
    assert time.monotonic() - start < 10


def test_arguments_survive_a_template_unchanged():
    messages = [{"role": "user", "content": "x"}]
    ChatTemplate({"default": "{% set messages = messages + [1] %}{{ messages | length }}"}).render(messages)
    assert messages == [{"role": "user", "content": "x"}]


def test_a_long_conversation_fits_the_limits():
    """2,000 messages of 500 characters through a template that looks at the list in each turn."""
    source = (
        "{% for m in messages %}{% if loop.index0 == messages | length - 1 and m.role == 'user' %}!{% endif %}"
        "{{ '<|' + m.role + '|>' + m.content | trim + '\n' }}{% endfor %}"
    )
    messages = [{"role": "user", "content": "x" * 500}] * 2000
    assert len(ChatTemplate({"default": source}).render(messages)) == 2000 * 509 + 1
