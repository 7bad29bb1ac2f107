"""What a run needs before its first step: the embedded world, a tokenizer, token shards. Built when missing, and said."""

from __future__ import annotations

import itertools
import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ..atomic import write_atomic
from ..config.schema import HoldoutConfig, Recipe, SourceConfig, TokenizerConfig
from ..data.loader import Loader
from ..data.packing import packing_lines
from ..data.prepare import prepare as prepare_shards
from ..data.records import Record, texts_of
from ..data.shards import TokenDataset
from ..data.sources import Counts, read_records
from ..data.token_files import is_token_source
from ..errors import DataError, RecipeError
from ..tokenizer.library import load_template, template_of
from ..tokenizer.template import ChatTemplate
from ..tokenizer.tokenizer import CONTROL_TOKENS, Tokenizer
from ..tokenizer.train import train_tokenizer

if TYPE_CHECKING:
    from ..config.load import Loaded

Say = Callable[[str], None]
ASKED = "trained_for.json"  # beside a run's own tokenizer: what the recipe asked for when it was trained
RULES = ("kind", "digits", "spaces", "cjk", "sample", "max_bytes", "new_tokens")
T = TypeVar("T")


@dataclass(frozen=True)
class Prepared:
    """Everything that training reads."""

    train: TokenDataset
    validation: TokenDataset | None
    tokenizer: Tokenizer
    template: ChatTemplate


def drop_last(items: Iterable[T], n: int) -> Iterator[T]:
    """All items but the last ``n``, streaming: never more than ``n`` are held."""
    queue: deque[T] = deque()
    for item in items:
        queue.append(item)
        if len(queue) > n:
            yield queue.popleft()


def resolve_synthetic(sources: list[SourceConfig], run: Path, say: Say) -> list[SourceConfig]:
    """Replace ``synth:[SIZE/]KIND`` by a file of the embedded world, written to ``<run>/world`` when it is not there."""
    resolved = []
    for source in sources:
        if source.path.startswith("synth:"):
            size, _, kind = source.path[len("synth:") :].rpartition("/")
            source = source.model_copy(update={"path": str(_world_file(run, size or "small", kind, say))})
        resolved.append(source)
    return resolved


def _world_file(run: Path, size: str, kind: str, say: Say) -> Path:
    from ..data.synth import synthesize

    if size not in ("tiny", "small"):
        raise DataError(f"synth:{size}/{kind}: unknown size {size!r}; expected tiny or small")
    world = run / ("world" if size == "small" else f"world-{size}")
    if not (world / "world.json").is_file():
        say(f"writing the embedded world ({size}) to {world}")
        synthesize(world, seed=1, size=size)
    matches = sorted(p for p in world.iterdir() if p.stem == kind)
    if not matches:
        kinds = ", ".join(sorted(p.stem for p in world.iterdir() if p.suffix in (".jsonl", ".tsv")))
        raise DataError(f"synth:{kind}: the embedded world has no {kind!r}; it has {kinds}")
    return matches[0]


def prepare_tokenizer(recipe: Recipe, sources: list[SourceConfig], run: Path, say: Say) -> Tokenizer:
    """The recipe's tokenizer: loaded from its path, else from ``<run>/tokenizer``, else trained there."""
    config = recipe.tokenizer
    path = config.path or (None if recipe.init_from in (None, "random") else recipe.init_from)
    if path is not None:
        return extended(Tokenizer.load(Path(path)), config.new_tokens, say)
    folder = run / "tokenizer"
    own = bool(config.train_on)
    asked = {
        "vocab_size": config.vocab_size,
        "trained_on": [s.path for s in config.train_on or recipe.data.train],
        "rules": config.model_dump(include=set(RULES)),
    }
    if (folder / "tokenizer.json").is_file():
        return _reused(Tokenizer.load(folder), folder, asked, say)
    used = resolve_synthetic(config.train_on, run, say) if own else sources
    say(f"training a tokenizer of {config.vocab_size} ids on {', '.join(s.path for s in used)}")
    records: Iterable[Record] = read_records(used, recipe.data.on_bad_row, Counts())
    if not own and isinstance(recipe.data.validation, HoldoutConfig):
        records = drop_last(records, recipe.data.validation.rows)  # held-out rows stay unseen by the tokenizer too
    tokenizer = _train(records, config, say)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / ASKED, json.dumps(asked, ensure_ascii=False, indent=1) + "\n")
    tokenizer.save(folder)
    return tokenizer


def _reused(tokenizer: Tokenizer, folder: Path, asked: dict[str, Any], say: Say) -> Tokenizer:
    """A tokenizer that stands in the run folder, once it is clear that it is the one that the recipe asks for."""
    say(f"reusing the tokenizer at {folder}: {tokenizer.vocab_size:,} ids")
    try:
        before = json.loads((folder / ASKED).read_text(encoding="utf-8"))
    except (OSError, ValueError):  # put there by hand, or by an earlier version
        before = {**asked, "vocab_size": max(asked["vocab_size"], tokenizer.vocab_size)}
    if before["vocab_size"] != asked["vocab_size"]:
        raise DataError(
            f"{folder}: this tokenizer was trained for tokenizer.vocab_size={before['vocab_size']}, the recipe now asks "
            f"for {asked['vocab_size']}; use another run folder (run=DIR), or set vocab_size back"
        )
    rules, now = before.get("rules") or asked["rules"], asked["rules"]
    changed = [f"{key}={rules.get(key)!r} then, {now[key]!r} now" for key in now if rules.get(key) != now[key]]
    if changed:
        raise DataError(
            f"{folder}: this tokenizer was trained by other settings ({'; '.join(changed)}); use another run folder "
            "(run=DIR), or set them back"
        )
    if before["trained_on"] != asked["trained_on"]:
        say(f"  it was trained on {', '.join(before['trained_on'])}; another run folder (run=DIR) trains a new one")
    return tokenizer


def extended(tokenizer: Tokenizer, new_tokens: list[str], say: Say) -> Tokenizer:
    """The tokenizer with the recipe's new control tokens."""
    if not new_tokens:
        return tokenizer
    from ..tokenizer.extend import extend

    longer = extend(tokenizer, new_tokens)
    say(
        f"{longer.vocab_size - tokenizer.vocab_size} new tokens: {tokenizer.vocab_size:,} ids become {longer.vocab_size:,}"
    )
    return longer


def _train(records: Iterable[Record], config: TokenizerConfig, say: Say) -> Tokenizer:
    texts = itertools.chain.from_iterable(texts_of(record) for record in records)
    options = {key: getattr(config, key) for key in ("kind", "digits", "spaces", "cjk", "sample", "max_bytes")}
    added = len(dict.fromkeys(config.new_tokens).keys() - set(CONTROL_TOKENS))
    return extended(train_tokenizer(texts, config.vocab_size - added, say=say, **options), config.new_tokens, say)


def train_tokenizer_on(config: TokenizerConfig, out: Path, say: Say) -> dict[str, Any]:
    """A tokenizer of its own, from the rows of ``config.train_on``, into ``out``."""
    if not config.train_on:
        raise DataError("tokenizer.train_on is empty: name the rows to train the tokenizer on")
    tokenizer = _train(read_records(config.train_on, "error", Counts()), config, say)
    tokenizer.save(out)
    say(f"  {tokenizer.vocab_size} ids")
    return {"vocab_size": tokenizer.vocab_size}


def prepare(recipe: Recipe, run: Path, say: Say = print) -> Prepared:
    """Build or reuse tokenizer and shards of ``recipe`` below ``run``."""
    data = recipe.data
    if recipe.template.use is not None:
        load_template(recipe.template.use)  # an unknown name is refused before a tokenizer is trained
    sources = resolve_synthetic(data.train, run, say)
    tokenizer = prepare_tokenizer(recipe, _texts(recipe, sources, run), run, say)
    template = template_of(recipe.template, tokenizer, check=recipe.stage == "sft" or recipe.template.use is not None)
    tokenizer = template.tokenizer  # carries the template, so that the run stores it
    cache = Path(data.cache) if data.cache else run / "data"

    def shards(name: str, used: list[SourceConfig]) -> TokenDataset:
        return prepare_shards(
            used,
            tokenizer,
            template,
            cache / name,
            seq_len=data.seq_len,
            on_bad_row=data.on_bad_row,
            on_long=data.on_long,
            shard_tokens=data.shard_tokens,
            workers=data.workers,
            say=say,
        )

    train = shards("train", sources)
    if recipe.stage == "pretrain":
        say_answers_only(train, say)
    validation = None
    if isinstance(data.validation, HoldoutConfig):
        rows = data.validation.rows
        if rows >= train.n_documents:
            raise DataError(
                f"data.validation.rows={rows}, but data.train has {train.n_documents} documents; hold out fewer"
            )
        cut = train.n_documents - rows
        train, validation = train.view(0, cut), train.view(cut, cut + rows)
    elif data.validation:
        validation = shards("validation", resolve_synthetic(data.validation, run, say))
    train.check_vocab(tokenizer.vocab_size)
    return Prepared(train, validation, tokenizer, template)


def say_answers_only(train: TokenDataset, say: Say) -> None:
    """Conversations among what is pretrained on: nobody asked for fine-tuning, yet only their answers are targets."""
    known = train.manifest
    chats, tokens = known.get("chats", 0), known.get("tokens", 0)
    if chats:
        trained = known.get("trained_tokens", 0) / max(tokens, 1)
        say(
            f"note: stage: pretrain reads {chats:,} conversations or instructions (of {train.n_documents:,} documents), and of "
            f"these only the answers are trained: {trained:.1%} of all tokens are targets. To train all of a row, make it a "
            "text; to fine-tune, set stage: sft and init_from"
        )


def _texts(recipe: Recipe, sources: list[SourceConfig], run: Path) -> list[SourceConfig]:
    """The sources that a tokenizer can be trained on. Ready-made token streams belong to one that exists."""
    texts = [source for source in sources if not is_token_source(source)]
    config = recipe.tokenizer
    known = config.path or config.train_on or recipe.init_from not in (None, "random")
    if len(texts) < len(sources) and not known and not (run / "tokenizer" / "tokenizer.json").is_file():
        found = next(source for source in sources if is_token_source(source))
        raise DataError(
            f"{found.path}: holds the token ids of a tokenizer that exists already; name its folder with tokenizer.path"
        )
    return texts


def prepare_data(loaded: Loaded, say: Say = print) -> dict[str, Any]:
    """``sprout data prepare``: build what the recipe trains on; the figures of what was built."""
    if not isinstance(loaded.recipe, Recipe):
        raise RecipeError([f"{loaded.path}: several stages; `data prepare` takes a recipe of one training run"])
    made = prepare(loaded.recipe, loaded.run_dir, say)
    parts = {"train": made.train, "validation": made.validation}
    figures = {
        name: {"documents": part.n_documents, "tokens": part.n_tokens, "fingerprint": part.fingerprint}
        for name, part in parts.items()
        if part is not None
    }
    for name, part in figures.items():
        say(f"{name}: {part['documents']:,} documents, {part['tokens']:,} tokens")
    packed = loader_of(loaded.recipe, made.train, made.tokenizer.pad_id).statistics
    for line in packing_lines(packed, loaded.recipe.data.packing):
        say(line)
    return {
        "run": str(loaded.run_dir),
        "vocab_size": made.tokenizer.vocab_size,
        "counts": made.train.manifest["counts"],
        "packing": packed,
        **figures,
    }


def loader_of(recipe: Recipe, dataset: TokenDataset, pad_id: int, *, training: bool = True) -> Loader:
    """The loader that the recipe describes over ``dataset``. Only training has overlapping windows (``data.stride``):
    a validation token counts once."""
    data = recipe.data
    return Loader(
        dataset,
        seq_len=data.seq_len,
        rows_per_step=recipe.train.batch_tokens // data.seq_len,
        seed=recipe.seed,
        packing=data.packing,
        document_mask=data.document_mask,
        pad_id=pad_id,
        stride=data.stride if training else None,
    )


def validation_of(run: Path) -> tuple[Loader, Tokenizer] | None:
    """Validation rows of a finished run folder, read from its own shards; None where it has none."""
    from ..config.load import load_recipe

    stored = run / "recipe.yaml"
    if not stored.is_file():
        return None
    recipe = load_recipe(stored).recipe
    if not isinstance(recipe, Recipe) or recipe.data.validation is None:
        return None
    tokenizer = Tokenizer.load(run)
    cache = Path(recipe.data.cache) if recipe.data.cache else run / "data"
    if isinstance(recipe.data.validation, HoldoutConfig):
        dataset = TokenDataset(cache / "train")
        dataset = dataset.view(dataset.n_documents - recipe.data.validation.rows, dataset.n_documents)
    else:
        dataset = TokenDataset(cache / "validation")
    return loader_of(recipe, dataset, tokenizer.pad_id, training=False), tokenizer
