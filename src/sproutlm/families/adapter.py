"""What every family does with its tables: config.json <-> ``ModelConfig``, and tensor names both ways.

Weights are renamed and never changed. A tensor that is missing, extra or of another shape is an error with its name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from pydantic import ValidationError

from ..config.model import ModelConfig
from ..errors import SproutError
from ..model.meta import on_meta
from .fields import check_fields
from .layout import Layout
from .lazy import Lazy, State, header_of, reader
from .parts import rope_from_hf, rope_to_hf

REQUIRED: Final = "required"
LISTED = 8  # names shown per kind of fault; a wrong shape of model would otherwise fill the screen


@dataclass(frozen=True)
class Field:
    """One size or switch: its name in config.json, its name in ``ModelConfig``, and what absence means."""

    theirs: str
    ours: str
    default: Any


Parts = Callable[[Mapping[str, Any]], dict[str, Any]]


@dataclass(frozen=True)
class Family:
    """One Hugging Face architecture. Every method raises SproutError with the field or tensor at fault.

    ``fields`` are numbers and switches one to one; ``read`` and ``write`` are for what is not (windows, experts);
    ``layout`` for tensors that a file stores otherwise than by one name each.
    """

    name: str
    architecture: str
    model_type: str
    tensors: dict[str, str]
    fields: Sequence[Field]
    fixed: Mapping[str, Any]  # config.json fields that only one value of is supported
    read: Parts = field(default=lambda config: {})
    write: Callable[[ModelConfig], dict[str, Any]] = field(default=lambda config: {})
    layout: Layout | None = None
    rotary: bool = True
    theta: float = 10_000.0  # base of the rotary frequencies where a config.json is silent
    heads_divide_width: bool = False

    def config_from_hf(self, config: Mapping[str, Any]) -> ModelConfig:
        """A parsed config.json -> ``ModelConfig``."""
        check_fields(config)
        refuse_unsupported(config, self)
        values: dict[str, Any] = {"family": self.name, **(rope_from_hf(config, self.theta) if self.rotary else {})}
        for entry in self.fields:
            value = config.get(entry.theirs)
            if value is None:
                value = entry.default
            if value is REQUIRED:
                raise SproutError(f"config.json: {entry.theirs} is missing; a {self.model_type} model needs it")
            if value is None:
                continue
            values[entry.ours] = value
        values |= self.read({**config, "num_hidden_layers": int(values["n_layers"])})
        try:
            return ModelConfig(**values)
        except ValidationError as error:
            theirs = {entry.ours: entry.theirs for entry in self.fields}
            faults = []
            for fault in error.errors():
                first, *rest = map(str, fault["loc"] or ("",))
                where = ".".join([theirs.get(first, first), *rest])
                faults.append(f"{where}: {fault['msg']}" if where else fault["msg"])
            raise SproutError("config.json: " + "; ".join(faults)) from None

    def config_to_hf(
        self,
        config: ModelConfig,
        *,
        eos_token_id: int | list[int] | None = None,
        pad_token_id: int | None = None,
        dtype: str = "float32",
    ) -> dict[str, Any]:
        """``ModelConfig`` -> the fields of a config.json that transformers 4 and 5 both read."""
        if config.vocab_size <= 0:
            raise SproutError("vocab_size is 0: it is set from the tokenizer before a model can be exported")
        if self.heads_divide_width and config.dim % config.n_heads:
            raise SproutError(
                f"dim={config.dim} is not a multiple of n_heads={config.n_heads}, which {self.architecture} requires; "
                "choose another n_heads, or family: qwen3"
            )
        hf: dict[str, Any] = {"architectures": [self.architecture], "model_type": self.model_type}
        hf |= {entry.theirs: getattr(config, entry.ours) for entry in self.fields}
        hf |= dict(self.fixed)
        # transformers 5 reads rope_parameters and dtype; older releases and other programs rope_theta and torch_dtype.
        hf |= rope_to_hf(config) if self.rotary else {}
        hf |= {
            "dtype": dtype,
            "torch_dtype": dtype,
            "attention_dropout": 0.0,
            "initializer_range": 0.02,
            "use_cache": True,
            "bos_token_id": None,  # null on purpose: LlamaConfig's default would be token 1
            "eos_token_id": eos_token_id,
            "pad_token_id": pad_token_id,
        }
        return hf | self.write(config)

    def their_name(self, name: str) -> str:
        """Our parameter name -> Hugging Face's."""
        layer = re.search(r"\.(\d+)\.", name)
        number = layer.group(1) if layer else ""
        pattern = name.replace(f".{number}.", ".{}.", 1) if layer else name
        if pattern not in self.tensors:
            raise SproutError(f"{name} has no place in a {self.model_type} file")
        return self.tensors[pattern].replace("{}", number)

    def state_from_hf(self, config: ModelConfig, state: State) -> State:
        """Tensors by Hugging Face's names -> the same by ours, each read when it is asked for.

        Names, shapes and types are checked now, from the file's header. A tied head that is stored, too, is accepted if
        equal, or if the embedding is stored as the head alone.
        """
        if config.n_layers > len(state):  # before a model of so many layers is laid out
            raise SproutError(
                f"config.json says {config.n_layers} layers, and the weights are {len(state)} tensors in all; one of the two "
                "belongs to another model"
            )
        shapes = expected_shapes(config)
        plain = state if self.layout is None else self.layout.plain(config, state)
        header = header_of(state)
        given = dict(header if self.layout is None else self.layout.plain(config, header))
        # Old Llama files also hold the rotary frequencies, which follow from the config.
        given = {name: it for name, it in given.items() if not name.endswith(".rotary_emb.inv_freq")}
        theirs = {self.their_name(name): name for name in shapes}
        source = {name: name for name in theirs}
        head, embedding = "lm_head.weight", self.their_name("embed_tokens.weight")
        twice = config.tie_embeddings and head in given
        if twice:
            given.setdefault(embedding, given.pop(head))
            if embedding not in plain:
                source[embedding] = head
        check_tensors({name: shapes[ours] for name, ours in theirs.items()}, given)
        if twice and embedding in plain and not torch.equal(plain[head], plain[embedding]):
            raise SproutError(
                "lm_head.weight differs from the embedding, but config.json says tie_word_embeddings=true; "
                "set it to false if the model has a head of its own"
            )
        return Lazy(
            {ours: reader(plain, source[name]) for name, ours in theirs.items()},
            {ours: given[name] for name, ours in theirs.items()},
        )

    def state_to_hf(self, config: ModelConfig, state: State) -> State:
        """Tensors by our names -> the same tensors by Hugging Face's; a tied head is not stored twice."""
        header = header_of(state)
        check_state(config, header)
        names = {self.their_name(name): name for name in expected_shapes(config)}
        named = Lazy({theirs: reader(state, ours) for theirs, ours in names.items()})
        if self.layout is None:
            return Lazy(
                {theirs: reader(state, ours) for theirs, ours in names.items()},
                {theirs: header[ours] for theirs, ours in names.items()},
            )
        shapes = {theirs: torch.empty_like(header[ours], device="meta") for theirs, ours in names.items()}
        stored = self.layout.stored(config, named)
        return Lazy(
            {name: reader(stored, name) for name in stored},
            dict(self.layout.stored(config, shapes)),
        )


def expected_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every parameter of a ``Transformer`` of this config, without allocating one."""
    try:
        model = on_meta(config)
    except (RuntimeError, OverflowError) as error:  # sizes whose product is beyond what torch counts with
        raise SproutError(f"a model of these sizes cannot exist: {str(error).splitlines()[0]}") from None
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def check_state(config: ModelConfig, state: State) -> None:
    """SproutError unless ``state`` holds exactly the parameters of a ``Transformer`` of this config, by our names."""
    check_tensors(expected_shapes(config), header_of(state))


def check_tensors(expected: Mapping[str, tuple[int, ...]], state: State) -> None:
    missing = [f"{name} {list(shape)}" for name, shape in expected.items() if name not in state]
    extra = [f"{name} {list(tensor.shape)}" for name, tensor in state.items() if name not in expected]
    misshapen, unusable = [], []
    for name, shape in expected.items():
        if name not in state:
            continue
        tensor = state[name]
        if tuple(tensor.shape) != shape:
            misshapen.append(f"{name} is {list(tensor.shape)}, expected {list(shape)}")
        if tensor.dtype not in (torch.float32, torch.float16, torch.bfloat16, torch.float64):
            unusable.append(f"{name} is {str(tensor.dtype).removeprefix('torch.')}")
    faults = {
        "missing": missing,
        "not part of this model": extra,
        "of another shape": misshapen,
        "not in a floating-point type that can be trained (quantised files are not read)": unusable,
    }
    lines = [
        f"{len(names)} tensor{'s' if len(names) > 1 else ''} {kind}: "
        + "; ".join(names[:LISTED])
        + (f"; and {len(names) - LISTED} more" if len(names) > LISTED else "")
        for kind, names in faults.items()
        if names
    ]
    if lines:
        raise SproutError("The weights do not fit the model's config. " + ". ".join(lines))


def refuse_unsupported(config: Mapping[str, Any], family: Family) -> None:
    """SproutError for an option that would make the model compute something else than ours does."""
    model_type = config.get("model_type", family.model_type)
    if model_type != family.model_type:
        raise SproutError(
            f"config.json: model_type is {model_type!r}, but {family.architecture} goes with {family.model_type!r}"
        )
    if config.get("quantization_config"):
        raise SproutError("config.json: quantization_config: quantised weights cannot be read; use the original ones")
    if "AutoModelForCausalLM" in (config.get("auto_map") or {}):
        raise SproutError("config.json: auto_map names code of the model's own, which is never run here")
    for name, value in family.fixed.items():
        given = config.get(name)
        if given is not None and given != value:
            raise SproutError(f"config.json: {name} is {given!r}; only {value!r} is supported")
