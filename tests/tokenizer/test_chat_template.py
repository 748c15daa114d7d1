"""Chat templates give the expected prompt, or one clear error."""

import datetime
import json

import pytest
from pair_vocabulary import byte_letters
from small_vocabulary import CONTROL, byte_level

from realm_jax.tokenizer import ChatTemplate, ChatTemplateError, Tokenizer

USER = [{"role": "user", "content": "Hi & <b>bye</b>"}]
TOOL = {"type": "function", "function": {"name": "wetter", "description": "Wie ist's <da>?", "parameters": {"k": [1]}}}
# In the manner of Llama 3: headers around each message, tools as JSON in the first user turn.
LLAMA3_LIKE = """\
{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start|>system<|end|>\\n\\n" ~ system_message }}
{%- if tools is not none %}
    {%- for tool in tools %}
        {{- "\\n" + tool | tojson(indent=2) }}
    {%- endfor %}
{%- endif %}
{{- "<|eot|>" }}
{%- for message in messages %}
    {%- if message.role not in ['user', 'assistant', 'tool'] %}
        {{- raise_exception("Unknown role: " + message.role) }}
    {%- endif %}
    {%- if 'tool_calls' in message %}
        {%- for call in message.tool_calls %}
            {{- "<|start|>call<|end|>" ~ {"name": call.function.name, "arguments": call.function.arguments} | tojson }}
        {%- endfor %}
    {%- else %}
        {{- '<|start|>' + message['role'] + '<|end|>\\n\\n' + message['content'] | trim + '<|eot|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start|>assistant<|end|>\\n\\n' }}
{%- endif %}
"""


def render(source, messages=USER, **options):
    return ChatTemplate({"default": source}, tokens={"bos_token": "<s>", "eos_token": "</s>"}).render(
        messages, **options
    )


def test_the_template_of_smollm2(smollm2):
    prompt = smollm2.chat_template.render([{"role": "user", "content": "hi"}])
    assert prompt == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    )
    ids = smollm2.encode(prompt)
    assert [ids.count(token_id) for token_id in smollm2.encode("<|im_start|><|im_end|>")] == [3, 2]


def test_a_file_without_template(gemma3):
    assert gemma3.chat_template is None


def test_system_role_tools_and_calls():
    call = {"function": {"name": "wetter", "arguments": {"ort": "Köln"}}}
    messages = [
        {"role": "system", "content": " Be brief. "},
        *USER,
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "content": "rain"},
    ]
    assert render(LLAMA3_LIKE, messages, tools=[TOOL], add_generation_prompt=False) == (
        "<s><|start|>system<|end|>\n\nBe brief.\n"
        + json.dumps(TOOL, indent=2, ensure_ascii=False)
        + "<|eot|><|start|>user<|end|>\n\nHi & <b>bye</b><|eot|>"
        + '<|start|>call<|end|>{"name": "wetter", "arguments": {"ort": "Köln"}}'
        + "<|start|>tool<|end|>\n\nrain<|eot|>"
    )


def test_a_template_may_refuse_messages():
    with pytest.raises(ChatTemplateError, match="refuses these messages: Unknown role: critic"):
        render(LLAMA3_LIKE, [{"role": "critic", "content": "x"}])


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("{{ bos_token }}|{{ eos_token }}|{{ unk_token }}|", "<s>|</s>||"),
        ("{{ messages[0].content | tojson }}", '"Hi & <b>bye</b>"'),
        ("{{ ['ä'] | tojson(ensure_ascii=True) }}", '["\\u00e4"]'),
        ("{{ tools is none }} {{ tools is defined }} {{ other is defined }}", "True True False"),
        (
            "{% for i in range(9) %}{% if i == 2 %}{% continue %}{% endif %}{% if i > 3 %}{% break %}{% endif %}"
            "{{ i }}{% endfor %}",
            "013",
        ),
        ("{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}", "1"),
        ("  {% if true %}\n  x\n  {% endif %}\n", "  x\n"),
        ("{% generation %}kept{% endgeneration %}", "kept"),
        ("{{ 'a,b'.split(',') | join('-') }} {{ 'x{}'.format(1) }} {{ '%s-%02d' % ('a', 7) }}", "a-b x1 a-07"),
        ("{{ {'b': 1, 'a': 2} | dictsort | list }} {{ [3, 1] | sort | first }}", "[('a', 2), ('b', 1)] 1"),
        ("{{ messages | selectattr('role', 'equalto', 'user') | map(attribute='content') | list | length }}", "1"),
        ("{% macro m(x) %}<{{ x }}>{% endmacro %}{{ m(1) ~ m(2) }}", "<1><2>"),
        ("{{ enable_thinking }}", "no"),
        ("{{ 'aXbX'.replace('X', 'YY') }}{{ 'aX' | replace('X', '') }}{{ 'a\nb' | indent(2) }}", "aYYbYYaa\n  b"),
    ],
)  # fmt: skip
def test_what_templates_rely_on(source, expected):
    assert render(source, enable_thinking="no") == expected


def test_today():
    today = datetime.date.today()
    assert render("{{ strftime_now('%Y-%m-%d') }}") in (str(today), str(today + datetime.timedelta(days=1)))


def test_named_templates():
    metadata = byte_level(byte_letters(), [("<|s|>", CONTROL)], bos_token_id=258)
    metadata |= {
        "tokenizer.chat_template": "plain",
        "tokenizer.chat_template.tool_use": "{{ bos_token }}tools",
        "tokenizer.chat_template.rag": "rag",
        "tokenizer.chat_templates": ["tool_use", "rag"],
    }
    template = Tokenizer.from_gguf(metadata).chat_template
    assert template is not None
    assert [template.render(USER), template.render(USER, tools=[TOOL])] == ["plain", "<|s|>tools"]
    assert template.render(USER, template="rag") == "rag"
    with pytest.raises(ChatTemplateError, match="are default, rag, tool_use, got 'other'"):
        template.render(USER, template="other")


def test_a_message_without_role_is_an_error():
    with pytest.raises(ChatTemplateError, match=r"messages\[1\] must be a mapping with a role"):
        render("{{ messages }}", [*USER, {"content": "x"}])


@pytest.mark.parametrize(
    "source", ["{% if %}", "{{ x.y.z }}", "{{ 1 / 0 }}", "{{ 'a' | nosuch }}", "{% include 'x' %}"]
)
def test_faults_in_a_template_are_template_errors(source):
    with pytest.raises(ChatTemplateError, match="the chat template failed"):
        render(source)
