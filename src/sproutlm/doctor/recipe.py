"""A recipe: what its settings would do without a word, and the data, tokenizer and start that it names."""

from __future__ import annotations

from pathlib import Path

from ..config.clean import CleanRecipe
from ..config.load import load_recipe
from ..config.schema import EvalStage, HoldoutConfig, Pipeline, Recipe, ScheduleConfig, SourceConfig, TrainStage
from ..errors import RecipeError, SproutError
from ..tokenizer.check import model_rows
from ..tokenizer.tokenizer import CONTROL_TOKENS, Tokenizer
from ..train.schedule import warmup_steps
from .data import examine_data
from .finding import Examination, listed
from .scan import Scan
from .template import recipe_template, shipped
from .tokenizer import same_tokenizer, vocabulary
from .tokens import Context

FEW_ROWS = 4  # rows per step, below which the gradient is mostly noise
# Peak rates outside of these were never right in the published recipes for the optimizer.
RATES = {"adamw": (1e-6, 0.01), "muon": (1e-4, 0.1)}
ELSEWHERE = ("synth:", "stage:")


def examine_recipe(path: Path) -> list[Examination]:
    """The recipe, then each file that it trains on and that is there already."""
    found = Examination(str(path), "recipe")
    try:
        loaded = load_recipe(path)
    except RecipeError as error:
        for problem in error.problems:
            found.fail("recipe", problem, "mend this line; `sprout schema` describes every key")
        return [found]
    found.notes += loaded.notes
    found.ok("recipe", "every key is known, every value possible")
    if isinstance(loaded.recipe, Recipe):
        return [found, *one_run(found, loaded.recipe)]
    if isinstance(loaded.recipe, CleanRecipe):
        return [found]
    return [found, *stages(found, loaded.recipe)]


def stages(found: Examination, pipeline: Pipeline) -> list[Examination]:
    parts: list[Examination] = []
    controls = {s.model.removeprefix("stage:") for s in pipeline.stages if isinstance(s, EvalStage) and s.control}
    for stage in pipeline.stages:
        if isinstance(stage, TrainStage):
            recipe = Recipe.model_validate({"name": stage.name, "seed": pipeline.seed, **stage.recipe})
            parts += one_run(found, recipe, f"{stage.name}: ", control=stage.name in controls)
    return parts


def one_run(found: Examination, recipe: Recipe, label: str = "", control: bool = False) -> list[Examination]:
    settings(found, recipe, label, control)
    held_out(found, recipe, label)
    start = start_of(found, recipe, label)
    folder, tokenizer = tokenizer_for(found, recipe, start, label)
    vocabularies(found, recipe, start, tokenizer, label)
    if recipe.stage == "sft" or recipe.template.use is not None:
        known = folder is not None or not (recipe.init_from or "").startswith(ELSEWHERE)
        if known or recipe.template.use is not None:
            recipe_template(found, recipe.template, tokenizer, recipe.tokenizer.new_tokens, label)
    untrained_tokens(found, recipe, tokenizer, label)
    data = recipe.data
    context = Context(
        tokenizer_dir=folder,
        seq_len=data.seq_len,
        stage=recipe.stage,
        template=recipe.template,
        on_long=data.on_long,
        packing=data.packing,
        new_tokens=recipe.tokenizer.new_tokens,
        on_bad_row=data.on_bad_row,
    )
    return sources(found, recipe, context, label)


def sources(found: Examination, recipe: Recipe, context: Context, label: str) -> list[Examination]:
    """Each source that is there, and the held-out ones beside those that are trained on."""
    from .between import compare, held_out_rows
    from .streams import examine_stream, is_stream

    parts: list[Examination] = []
    validation = recipe.data.validation
    seen: dict[str, list[Scan]] = {"train": [], "validation": []}
    given = {"train": recipe.data.train, "validation": validation if isinstance(validation, list) else []}
    trained = {real(source) for source in recipe.data.train}
    for part, named in given.items():
        for source in named:
            if source.path.startswith(ELSEWHERE) or (part == "validation" and real(source) in trained):
                continue
            if is_stream(source):
                parts.append(examine_stream(source, context))
            else:
                parts.append(examine_data(source, context, scans=seen[part]))
    compare(found, seen["train"], seen["validation"], label)
    if isinstance(validation, HoldoutConfig) and len(seen["train"]) == len(recipe.data.train):
        held_out_rows(found, seen["train"], validation.rows, label)
    return parts


def vocabularies(
    found: Examination, recipe: Recipe, start: Path | None, tokenizer: Tokenizer | None, label: str
) -> None:
    """pitfall 9: the model has a row for each id of the tokenizer."""
    asked = recipe.model.vocab_size if recipe.model is not None else 0
    size = recipe.tokenizer.vocab_size
    if tokenizer is not None:
        added = len(set(recipe.tokenizer.new_tokens) - set(tokenizer.control_tokens))
        size = tokenizer.vocab_size + added
        rows = model_rows(start) if start is not None else None
        if rows is not None:
            vocabulary(found, rows, tokenizer, f"{label}init_from")
    elif recipe.tokenizer.path is not None or start is not None or (recipe.init_from or "").startswith(ELSEWHERE):
        return
    if 0 < asked < size:
        what = f"{label}model.vocab_size is {asked:,}, but the tokenizer has {size:,} ids"
        found.fail("vocabulary", what, "remove model.vocab_size: it then follows the tokenizer", 9)


def untrained_tokens(found: Examination, recipe: Recipe, tokenizer: Tokenizer | None, label: str) -> None:
    """New control tokens that nothing writes: what rows say is text, and only a template writes control tokens."""
    from ..tokenizer.library import load_template

    new = recipe.tokenizer.new_tokens
    if not new:
        return
    try:
        source = load_template(recipe.template.use) if recipe.template.use else None
    except SproutError:
        return  # said by the check of the template
    source = source or (tokenizer.chat_template if tokenizer is not None else shipped()) or ""
    idle = [name for name in new if name not in source and name not in CONTROL_TOKENS]
    if idle:
        what = (
            f"{label}no chat template writes {listed(idle)}, and in rows these names stay text, so the model's rows for them "
            "are never trained"
        )
        cure = "write them in the template (template: {use: FILE.jinja}), or take them out of tokenizer.new_tokens"
        found.warn("new tokens", what, cure, 4)
    else:
        found.ok("new tokens", f"{label}the template writes {listed(new)}", 4)


def settings(found: Examination, recipe: Recipe, label: str = "", control: bool = False) -> None:
    """Settings that are valid and yet seldom meant. A control is fine-tuned from random weights on purpose."""
    before = len(found.findings)
    train, data, schedule = recipe.train, recipe.data, recipe.schedule
    rows = train.batch_tokens // data.seq_len
    if rows < FEW_ROWS:
        what = f"{label}{rows} rows of {data.seq_len} tokens per step: the gradient is mostly noise"
        found.warn("rows per step", what, f"raise train.batch_tokens to {FEW_ROWS * data.seq_len} or more", 22)
    if schedule.warmup == 0:
        what = f"{label}schedule.warmup is 0: the first step is taken at the full rate"
        found.warn("warm-up", what, "set schedule.warmup, 0.02 for example", 30)
    elif cut_warmup(recipe) and schedule.warmup != ScheduleConfig.model_fields["warmup"].default:
        what = (
            f"{label}schedule.warmup={schedule.warmup:g} of {train.steps:,} steps is more than half of the run and is cut "
            "to half of it"
        )
        found.warn("warm-up", what, "lower schedule.warmup, or give it as a share (0.02)", 30)
    low, high = RATES[recipe.optimizer.name]
    if not low <= recipe.optimizer.lr <= high:
        what = f"{label}optimizer.lr={recipe.optimizer.lr:g} is outside {low:g} to {high:g}, what {recipe.optimizer.name} is used with"
        cure = "a rate that is too small changes nothing, one too large diverges; start from the default"
        found.warn("learning rate", what, cure, 29 if recipe.optimizer.lr < low else 30)
    if not data.document_mask and data.packing != "none":
        what = f"{label}data.document_mask is off: tokens attend across documents that share a row"
        found.warn("document mask", what, "remove the line; the mask costs little", 11)
    if recipe.stage == "sft" and recipe.init_from in (None, "random") and not control:
        what = f"{label}this fine-tuning starts from RANDOM weights"
        found.warn("start", what, "set init_from: the run folder or Hugging Face folder of a pretrained model", 39)
    if len(found.findings) == before:
        found.ok("settings", f"{label}{rows} rows of {data.seq_len} tokens per step; nothing unusual", 30)


def cut_warmup(recipe: Recipe) -> bool:
    """Whether the warm-up asked for, in steps, is longer than the half of the run that it is held to."""
    asked, steps = recipe.schedule.warmup, recipe.train.steps
    return steps is not None and asked >= 1 and warmup_steps(recipe.schedule, steps) < asked


def held_out(found: Examination, recipe: Recipe, label: str) -> None:
    """Held-out rows that are trained on measure nothing."""
    if not isinstance(recipe.data.validation, list):
        return
    trained = {real(source) for source in recipe.data.train}
    both = [source.path for source in recipe.data.validation if real(source) in trained]
    if both:
        what = f"{label}{both[0]} is in data.train and in data.validation, so validation measures memory"
        found.fail("held-out rows", what, "give other rows, or validation: {rows: N} to hold some out")
    else:
        found.ok("held-out rows", f"{label}validation reads other files than training")


def real(source: SourceConfig) -> str:
    return source.path if source.path.startswith(ELSEWHERE) else str(Path(source.path).resolve())


def start_of(found: Examination, recipe: Recipe, label: str) -> Path | None:
    """The model that training starts from, if it is there."""
    from ..export.load import locate

    start = recipe.init_from
    if start is None or start == "random" or start.startswith(ELSEWHERE):
        return None
    cure = "train it first, or give another init_from"
    read, source = found.attempt("start", cure, 39, lambda: locate(start, say=found.notes.append))
    if not read:
        return None
    found.ok("start", f"{label}{source.folder}", 39)
    return Path(start)


def tokenizer_for(
    found: Examination, recipe: Recipe, start: Path | None, label: str
) -> tuple[Path | None, Tokenizer | None]:
    """The folder of the tokenizer that the run will use, if it is there, and it; it must be the one of the start."""
    given = recipe.tokenizer.path
    if given is None or given.startswith(ELSEWHERE):
        return start, loaded(start)
    cure = "train it first (sprout tokenizer train), or give another tokenizer.path"
    read, tokenizer = found.attempt("tokenizer", cure, None, lambda: Tokenizer.load(given))
    if not read:
        return start, loaded(start)
    theirs = loaded(start)
    if theirs is not None:
        what = f"{label}tokenizer.path and init_from"
        same_tokenizer(found, "tokenizer", tokenizer.fingerprint, theirs.fingerprint, what)
    return Path(given), tokenizer


def loaded(start: Path | None) -> Tokenizer | None:
    if start is None:
        return None
    try:
        return Tokenizer.load(start)
    except SproutError:
        return None
