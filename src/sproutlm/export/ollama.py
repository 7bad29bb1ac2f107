"""A folder for Ollama: the GGUF file, and a Modelfile whose Go template writes what the shipped chat template writes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import SproutError
from ..tokenizer.library import default_system, load_template, template_names, with_default_system
from ..tokenizer.tokenizer import token_name

if TYPE_CHECKING:
    from ..tokenizer.tokenizer import Tokenizer

MODEL, MODELFILE = "model.gguf", "Modelfile"
OWN_NAMES = (MODEL, MODELFILE)

_CHATML = """\
{{- range .Messages }}<|im_start|>{{ .Role }}
{{ .Content }}<|im_end|>
{{ end }}<|im_start|>assistant
"""
# In Ollama .Messages holds every message, system ones included, and .System the system message by itself. BOS and EOS
# stand for the tokenizer's own first and last token.
GO_TEMPLATES = {
    "chatml": _CHATML,
    "qwen3": _CHATML,
    "llama3": """\
BOS{{- range .Messages }}<|start_header_id|>{{ .Role }}<|end_header_id|>

{{ .Content }}<|eot_id|>{{ end }}<|start_header_id|>assistant<|end_header_id|>

""",
    "llama2": """\
{{- range $i, $_ := .Messages }}
{{- if eq .Role "user" }}BOS[INST] {{ if and $.System (le $i 1) }}<<SYS>>
{{ $.System }}
<</SYS>>

{{ end }}{{ .Content }} [/INST]
{{- else if eq .Role "assistant" }} {{ .Content }} EOS
{{- end }}
{{- end }}""",
    "alpaca": """\
BOS{{ if .System }}{{ .System }}{{ else }}Below is an instruction that describes a task. \
Write a response that appropriately completes the request.{{ end }}

{{ range .Messages }}
{{- if eq .Role "user" }}### Instruction:
{{ .Content }}

{{ else if eq .Role "assistant" }}### Response:
{{ .Content }}EOS

{{ end }}
{{- end }}### Response:
""",
    "plain": """\
BOS{{- range .Messages }}
{{- if eq .Role "user" }}User: {{ .Content }}
{{ else if eq .Role "assistant" }}AI: {{ .Content }}EOS
{{ else }}{{ .Content }}

{{ end }}
{{- end }}AI:""",
}


def template_name(tokenizer: Tokenizer) -> str:
    """Which shipped template this tokenizer has, with a system message of its own or without; a sentence for others."""
    if tokenizer.chat_template is None:
        raise SproutError(
            f"{tokenizer.where}: this tokenizer has no chat template, so Ollama could not tell a question from its answer; "
            "write the file alone with: sprout export gguf"
        )
    plain = with_default_system(tokenizer.chat_template, None)
    for name in template_names():
        if name in GO_TEMPLATES and load_template(name) == plain:
            return name
    raise SproutError(
        f"{tokenizer.where}: its chat template is none of {', '.join(GO_TEMPLATES)}, and Ollama has a template language of "
        "its own, into which only these are translated. Write the file with: sprout export gguf, and give Ollama a "
        "Modelfile with a TEMPLATE written by hand"
    )


def go_template(tokenizer: Tokenizer, *, add_bos: bool) -> str:
    """The Go template. ``add_bos``: the GGUF file says that the first token is added, so the template leaves it out."""
    bos = token_name(tokenizer.config.get("bos_token")) or ""
    name = template_name(tokenizer)
    if name == "llama3" and not bos:
        bos = "<|begin_of_text|>"
    source = GO_TEMPLATES[name].replace("EOS", tokenizer.token_text(tokenizer.eos_id))
    if add_bos and name == "llama2":  # one per exchange, of which the first is added
        source = source.replace("BOS", "{{ if gt $i 1 }}" + bos + "{{ end }}")
    return source.replace("BOS", "" if add_bos else bos)


def modelfile(tokenizer: Tokenizer, stop_ids: list[int], context: int, *, add_bos: bool) -> str:
    """The text of a Modelfile for the GGUF file beside it."""
    lines = [f"FROM ./{MODEL}", f"TEMPLATE {_quoted(go_template(tokenizer, add_bos=add_bos))}"]
    system = default_system(tokenizer.chat_template or "")
    if system is not None:
        lines.append(f"SYSTEM {_quoted(system)}")
    lines += [f'PARAMETER stop "{tokenizer.token_text(id_)}"' for id_ in stop_ids]
    lines.append(f"PARAMETER num_ctx {context}")
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    if '"""' in text:
        raise SproutError('a Modelfile cannot hold a text with """ in it; change the system message')
    return f'"""{text}"""'
