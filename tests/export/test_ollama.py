"""Ollama's folder: the Go template writes what the chat template writes, and the Modelfile names every stop."""

from __future__ import annotations

import json
import operator
import re
from pathlib import Path
from typing import Any

import pytest

from sproutlm.errors import SproutError
from sproutlm.export import save
from sproutlm.export.gguf import export_ollama
from sproutlm.export.ollama import go_template, modelfile, template_name
from sproutlm.model import Transformer
from sproutlm.tokenizer.library import load_template, template_names, with_default_system
from sproutlm.tokenizer.template import ChatTemplate
from sproutlm.tokenizer.tokenizer import Tokenizer

# --- the part of Go's text/template that the templates use, after its documentation -----------------------------------


def parse(source: str) -> list[Any]:
    """Nested lists: text, or [action, body, otherwise]. ``{{-`` and ``-}}`` take the white space beside them away."""
    source = re.sub(r"\s*\{\{- ", "{{ ", source)
    source = re.sub(r" -\}\}\s*", " }}", source)
    nodes, end, rest = block([part for part in re.split(r"(\{\{.*?\}\})", source) if part])
    assert end == "" and not rest
    return nodes


def block(parts: list[str]) -> tuple[list[Any], str, list[str]]:
    """Nodes up to an end or else, that word, and what follows it."""
    nodes: list[Any] = []
    while parts:
        part, parts = parts[0], parts[1:]
        action = part[2:-2].strip()
        if not part.startswith("{{"):
            nodes.append(part)
        elif action == "end" or action.startswith("else"):
            return nodes, action, parts
        elif action.startswith(("if ", "range ")):
            node, parts = control(action, parts)
            nodes.append(node)
        else:
            nodes.append([action])
    return nodes, "", []


def control(action: str, parts: list[str]) -> tuple[list[Any], list[str]]:
    body, end, parts = block(parts)
    otherwise: list[Any] = []
    if end.startswith("else if"):  # one end closes both
        node, parts = control(end.removeprefix("else "), parts)
        otherwise = [node]
    elif end == "else":
        otherwise, end, parts = block(parts)
    return [action, body, otherwise], parts


def value(term: str, dot: Any, root: Any, names: dict[str, Any]) -> Any:
    term = term.strip()
    if term.startswith('"'):
        return term[1:-1]
    if term.lstrip("-").isdigit():
        return int(term)
    call = re.fullmatch(r"(eq|le|gt|and) (\S+) (.+)", term)
    if call:
        first, second = (value(each, dot, root, names) for each in call.groups()[1:])
        if call[1] == "and":
            return first and second
        return {"eq": operator.eq, "le": operator.le, "gt": operator.gt}[call[1]](first, second)
    if term.startswith("("):
        return value(term.strip("()"), dot, root, names)
    if term.startswith("$."):
        return root[term[2:]]
    if term.startswith("$"):
        return names[term]
    assert term.startswith("."), term
    return dot[term[1:]]


def render(nodes: list[Any], dot: Any, root: Any, names: dict[str, Any]) -> str:
    out = ""
    for node in nodes:
        if isinstance(node, str):
            out += node
        elif len(node) == 1:
            out += str(value(node[0], dot, root, names))
        elif node[0].startswith("range"):
            what = node[0].split(":=")[-1].removeprefix("range").strip()
            for i, each in enumerate(value(what, dot, root, names)):
                out += render(node[1], each, root, {**names, "$i": i})
        else:
            chosen = node[1] if value(node[0].removeprefix("if"), dot, root, names) else node[2]
            out += render(chosen, dot, root, names)
    return out


def in_ollama(source: str, messages: list[dict[str, str]]) -> str:
    """What Ollama makes of a conversation: .Messages has all of it, .System the system messages."""
    system = "\n\n".join(m["content"] for m in messages if m["role"] == "system")
    root = {"System": system, "Messages": [{"Role": m["role"], "Content": m["content"]} for m in messages]}
    return render(parse(source), root, root, {})


# --- tests ------------------------------------------------------------------------------------------------------------

U, A, S = "user", "assistant", "system"
CONVERSATIONS = [
    [(U, "你好")],
    [(U, "one"), (A, "two"), (U, "three\n\nlines")],
    [(S, "Be short."), (U, "a"), (A, "b"), (U, "c"), (A, "d"), (U, "e")],
]


def with_template(tokenizer: Tokenizer, source: str, bos: str | None = None) -> Tokenizer:
    return Tokenizer(
        json.dumps(tokenizer.backend_json), {**tokenizer.config, "bos_token": bos, "chat_template": source}
    )


def test_renderer_of_this_test_does_what_go_documents() -> None:
    text = 'a {{- if eq .X "b" }} B {{ else if eq .X "c" }} C {{- else }} D {{ end -}}  \n e'
    got = {x: render(parse(text), {"X": x}, {"X": x}, {}) for x in "bcd"}
    assert got == {"b": "a B e", "c": "a Ce", "d": "a D e"}


@pytest.mark.parametrize("bos", [None, "<|reserved_0|>"])
@pytest.mark.parametrize("name", template_names())
def test_go_template_writes_what_the_chat_template_writes(name: str, bos: str | None, tokenizer: Tokenizer) -> None:
    own = with_template(tokenizer, load_template(name), bos)
    for turns in CONVERSATIONS:
        messages = [{"role": role, "content": content} for role, content in turns]
        wanted = ChatTemplate.of(own).render(messages, add_generation_prompt=True).text
        assert in_ollama(go_template(own, add_bos=False), messages) == wanted
        if bos and wanted.startswith(bos):  # then the file says that the first token is added, and Ollama adds it
            assert bos + in_ollama(go_template(own, add_bos=True), messages) == wanted


def test_modelfile_names_the_stops_and_the_system_message(tokenizer: Tokenizer) -> None:
    own = with_template(tokenizer, with_default_system(load_template("chatml"), '你是"助手"。\nKurz.'))
    assert template_name(own) == "chatml"
    text = modelfile(own, [4, 0], 512, add_bos=False)
    assert text.startswith('FROM ./model.gguf\nTEMPLATE """{{- range')
    assert 'SYSTEM """你是"助手"。\nKurz."""\n' in text
    assert text.endswith('PARAMETER stop "<|im_end|>"\nPARAMETER stop "<|endoftext|>"\nPARAMETER num_ctx 512\n')
    broken = with_template(tokenizer, with_default_system(load_template("chatml"), 'a """ b'))
    with pytest.raises(SproutError, match="cannot hold"):
        modelfile(broken, [0], 512, add_bos=False)


def test_other_templates_are_refused_with_a_way_out(model: Transformer, tokenizer: Tokenizer, tmp_path: Path) -> None:
    own = with_template(tokenizer, "{{ messages[0]['content'] }}")
    save(model, own, tmp_path / "hf")
    with pytest.raises(SproutError, match="none of chatml, qwen3.*sprout export gguf"):
        export_ollama(tmp_path / "hf", tmp_path / "out")
    bare = Tokenizer(json.dumps(tokenizer.backend_json), {**tokenizer.config, "chat_template": None})
    with pytest.raises(SproutError, match="no chat template"):
        template_name(bare)
    assert [p.name for p in tmp_path.iterdir()] == ["hf"]


def test_folder_is_whole_and_never_takes_another_s_place(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("gguf", reason="the gguf package is not installed (pip install gguf)")
    report = export_ollama(folder, tmp_path / "out", check=False)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["Modelfile", "model.gguf"]
    assert report["template"] == "chatml" and report["out"] == str(tmp_path / "out")
    export_ollama(folder, tmp_path / "out", kind="q8_0", check=False)  # an earlier export is replaced
    with pytest.raises(SproutError, match="not empty and no earlier export"):
        export_ollama(folder, folder, check=False)
