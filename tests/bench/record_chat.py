"""Records what the `transformers` library makes of chat templates and conversations, for tests/inference.

    pip install '.[peers]' jinja2 && python -m tests.bench.record_chat

The templates are written in the styles of published models; `chatml` is SmolLM2's own.
Writes tests/fixtures/chat.json: the templates, the conversations, and for each pair the text or the error.
"""

import json
import pathlib

import transformers
from jinja2 import TemplateError
from transformers.utils.chat_template_utils import render_jinja_template

TEMPLATES = {
    "chatml": (
        "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\n"
        "You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}"
        "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
    "headers": """{{- bos_token }}
{%- if not date_string is defined %}{%- set date_string = "26 Jul 2024" %}{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{{- "Today Date: " + date_string + "\\n\\n" }}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
    {{- message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
""",
    "inst": (
        "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
        "{% set system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}"
        "{% set system_message = false %}{% endif %}{% for message in loop_messages %}"
        "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
        "{% if loop.index0 == 0 and system_message != false %}"
        "{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}"
        "{% else %}{% set content = message['content'] %}{% endif %}"
        "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
        "{% elif message['role'] == 'assistant' %}{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
    ),
    "turns": (
        "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
        "{% endif %}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
        "{% if (message['role'] == 'assistant') %}{% set role = 'model' %}{% else %}{% set role = message['role'] %}"
        "{% endif %}{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}"
    ),
    "everything": """{# every convention at once #}
{%- macro show(value, level=0) %}
{{ '#' * level }}{{ value | tojson }}
{% endmacro %}
{%- set seen = namespace(users=0, last='') %}
{% if tools %}
{{ tools | tojson(indent=4) }}
{% elif tools is none and documents is none %}
no tools, {{ strftime_now('100%% %n') }}{{ pad_token }}|{{ unknown_token }}
{% endif %}
  {% for message in messages %}
    {% if message.role == 'system' %}
      {% continue %}
    {% endif %}
    {% if message.role == 'user' %}{% set seen.users = seen.users + 1 %}{% endif %}
    {% if seen.users > 2 %}
      {% break %}
    {% endif %}
    {% if message.role == 'assistant' %}
      {% generation %}
        {% set inner = message.content.split('</think>')[-1].lstrip('\\n') %}
{{ inner }}{{ eos_token }}
      {% endgeneration %}
      {% set seen.last = inner | default('out of scope') %}
    {% else %}
{{ show(message, loop.index) -}}
    {% endif %}
  {% endfor %}
{{ {'role': '<&>', 'é': messages | length} | tojson }} {{ seen.last }} {{ messages[-1].content[:3] | upper }}
{{ messages | map(attribute='role') | join(', ') }}
""",
}
TOKENS = {
    "chatml": {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|im_end|>"},
    "headers": {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"},
    "inst": {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
    "turns": {"bos_token": "<bos>", "eos_token": "<eos>"},
    "everything": {"eos_token": "</s>", "pad_token": "<pad>"},
}
SYSTEM = ("system", "You are terse.\n")
CONVERSATIONS = {
    "one": [("user", "Hi there")],
    "system": [SYSTEM, ("user", "  What is 2 < 3 & 'so'?  \n")],
    "turns": [("user", "a"), ("assistant", "<think>hm</think>\n\nb"), ("user", "c\n\nd"), ("assistant", "e ")],
    "long": [SYSTEM, *[("user", "naïve 日本 🎉"), ("assistant", "\tok\r\n")] * 3, ("user", "")],
    "twice": [("user", "a"), ("user", "b")],
    "tool": [("user", "look"), ("assistant", "…"), ("tool", '{"x": [1, 2]}')],
    "answer": [("assistant", "first"), ("user", "then")],
}


def main() -> None:
    """Writes the fixture."""
    conversations = {
        name: [{"role": role, "content": content} for role, content in messages]
        for name, messages in CONVERSATIONS.items()
    }
    expected: dict[str, dict[str, str]] = {}
    for name, source in TEMPLATES.items():
        for conversation, messages in conversations.items():
            for prompt in (True, False):
                try:
                    rendered, _ = render_jinja_template(
                        [messages], chat_template=source, add_generation_prompt=prompt, **TOKENS[name]
                    )
                    result = {"text": rendered[0]}
                except TemplateError as error:
                    result = {"error": str(error)}
                expected[f"{name}/{conversation}/{prompt}"] = result
    out = {"version": transformers.__version__, "templates": TEMPLATES, "tokens": TOKENS}
    out |= {"conversations": conversations, "expected": expected}
    path = pathlib.Path(__file__).parents[1] / "fixtures" / "chat.json"
    path.write_text(json.dumps(out, indent=1, ensure_ascii=False) + "\n")
    print(f"{path}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
