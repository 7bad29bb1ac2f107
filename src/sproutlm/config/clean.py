"""The recipe of ``sprout data clean``: what is read, which steps it goes through, and on what they run."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from .data import SourceConfig
from .strict import Fault, Strict, refuse

Rule = Literal["gopher_quality", "gopher_repetition", "c4", "fineweb"]


class LanguageStep(Strict):
    """Keep documents of these languages, told by fastText's lid.176 (its small form comes with the package)."""

    keep: list[str] = Field(min_length=1, description="Languages kept, as codes: zh, en, fr ...")
    min_score: float = Field(0.5, ge=0, le=1, description="Least probability of the language; below it: rejected.")
    model: str | None = Field(None, description="A fastText model file (lid.176.bin, GlotLID); default: the small one.")


class EnglishRules(Strict):
    """Thresholds for text whose words are parted by spaces. The rules are datatrove's own filters."""

    min_words: int = Field(50, ge=0, description="Gopher: words in a document.")
    max_words: int = Field(100_000, gt=0)
    min_mean_word_length: float = Field(3, ge=0)
    max_mean_word_length: float = Field(10, gt=0)
    max_symbol_ratio: float = Field(0.1, ge=0, description="Gopher: # and ellipses per word.")
    max_bullet_lines: float = Field(0.9, ge=0, le=1)
    max_ellipsis_lines: float = Field(0.3, ge=0, le=1)
    min_alphabetic_words: float = Field(0.8, ge=0, le=1)
    min_stop_words: int = Field(2, ge=0)
    stop_words: list[str] = Field(
        default_factory=lambda: ["the", "be", "to", "of", "and", "that", "have", "with"],
        description="Gopher: at least min_stop_words of these occur.",
    )
    max_duplicate_lines: float = Field(0.3, ge=0, le=1, description="Gopher: share of lines that occurred before.")
    min_sentences: int = Field(5, ge=0, description="C4: sentences left after its line rules.")
    min_words_per_line: int = Field(3, ge=0, description="C4: shorter lines are taken out.")
    refuse_curly_brackets: bool = Field(False, description="C4: reject documents with {; that rejects code and maths.")
    min_lines_with_punctuation: float = Field(0.12, ge=0, le=1, description="FineWeb: lines that end a sentence.")
    max_short_lines: float = Field(0.67, ge=0, le=1, description="FineWeb: share of lines up to short_line characters.")
    short_line: int = Field(30, gt=0)
    max_duplicate_line_characters: float = Field(0.1, ge=0, le=1, description="FineWeb: characters in repeated lines.")
    max_newlines: float = Field(0.3, ge=0, description="FineWeb: line breaks per word.")


class ChineseRules(Strict):
    """Thresholds for Chinese and Japanese text, where there are no spaces: everything is counted in characters."""

    min_characters: int = Field(80, ge=0, description="Gopher: letters in a document.")
    max_characters: int = Field(200_000, gt=0)
    min_mean_clause: float = Field(3, ge=0, description="Gopher: characters between two punctuation marks, on average.")
    max_mean_clause: float = Field(60, gt=0)
    max_symbol_ratio: float = Field(0.05, ge=0, description="Gopher: # and ellipses per character.")
    max_bullet_lines: float = Field(0.9, ge=0, le=1)
    max_ellipsis_lines: float = Field(0.3, ge=0, le=1)
    min_letters: float = Field(0.6, ge=0, le=1, description="Share of letters among the characters that are no space.")
    max_punctuation: float = Field(0.35, ge=0, le=1, description="Share of punctuation among them.")
    min_stop_characters: int = Field(2, ge=0)
    stop_characters: str = Field(
        "的了是在不有和人这中大为上个国我以要他时来用们",
        description="Gopher: at least min_stop_characters of these occur; give 之不无有一人何 and the like for classical texts.",
    )
    max_duplicate_lines: float = Field(0.3, ge=0, le=1)
    max_duplicate_line_characters: float = Field(0.2, ge=0, le=1, description="Gopher; FineWeb takes half of it.")
    top_ngrams: dict[int, float] = Field(
        default_factory=lambda: {4: 0.2, 6: 0.18, 8: 0.16},
        description="Gopher: characters -> greatest share of the text that the commonest n-gram of that length covers.",
    )
    duplicate_ngrams: dict[int, float] = Field(
        default_factory=lambda: {10: 0.15, 14: 0.13, 20: 0.10},
        description="Gopher: characters -> greatest share of the text within n-grams that occurred before.",
    )
    min_sentences: int = Field(3, ge=0, description="C4: sentences left after its line rules.")
    min_characters_per_line: int = Field(5, ge=0, description="C4: shorter lines are taken out.")
    refuse_curly_brackets: bool = Field(False, description="C4: reject documents with {; that rejects code and maths.")
    min_lines_with_punctuation: float = Field(0.12, ge=0, le=1, description="FineWeb: lines that end a sentence.")
    max_short_lines: float = Field(0.67, ge=0, le=1, description="FineWeb: share of lines up to short_line characters.")
    short_line: int = Field(10, gt=0)
    max_newlines: float = Field(0.15, ge=0, description="FineWeb: line breaks per character.")
    script: Literal["any", "simplified", "traditional"] = Field(
        "any", description="Reject documents written in the other script."
    )
    max_other_script: float = Field(
        0.1, ge=0, le=1, description="script: share of the other script's forms among characters that differ."
    )


class QualityStep(Strict):
    """Gopher, C4 and FineWeb, by words or by characters: each document is judged by what it is written in."""

    rules: list[Rule] = Field(
        default=["gopher_quality", "gopher_repetition", "c4", "fineweb"],
        min_length=1,
        description="Which rules, in this order.",
    )
    en: EnglishRules = Field(default_factory=EnglishRules, description="For text with words.")
    zh: ChineseRules = Field(default_factory=ChineseRules, description="For text with a third or more of CJK letters.")


class PiiStep(Strict):
    """Mask what names a person. Each kind is counted; a kind with the text null is left as it is."""

    email: str | None = Field("<email>", description="Written in place of an e-mail address.")
    ip: str | None = Field("<ip>", description="Of a public IPv4 address.")
    phone: str | None = Field("<phone>", description="Of a Chinese mobile number.")
    id_number: str | None = Field("<id>", description="Of a Chinese identity number whose date and check digit hold.")


class DecontaminateStep(Strict):
    """Reject documents that share an n-gram with an evaluation set."""

    against: list[SourceConfig] = Field(min_length=1, description="Evaluation sets, any file that the data door reads.")
    ngram: int = Field(13, gt=1, description="Units in a row that tell contamination: words, or CJK characters.")
    min_ngram: int = Field(
        8, gt=1, description="An evaluation text with fewer units than ngram is looked for whole, from this length on."
    )

    @model_validator(mode="after")
    def _possible(self) -> DecontaminateStep:
        if self.min_ngram > self.ngram:
            refuse([Fault(("min_ngram", "ngram"), f"must be at most ngram ({self.ngram})")])
        return self


class ExactStep(Strict):
    """Keep the first of documents that are equal but for white space."""


class MinhashStep(Strict):
    """Keep the first of documents that are near duplicates: Jaccard similarity s is found with 1 - (1 - s^rows)^bands."""

    ngram: int = Field(5, gt=0, description="Units in a shingle: words, or CJK characters.")
    bands: int = Field(14, gt=0, le=256)
    rows: int = Field(8, gt=0, le=64)
    min_similarity: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Documents that share a band stay all the same if they are less alike than this, by their "
        "signatures; default: half of (1/bands)^(1/rows), where the bands begin to find.",
    )
    numbers: Literal["keep", "merge"] = Field(
        "keep", description="merge: all numbers count as one, which makes duplicates of different equations."
    )
    seed: int = Field(1, ge=0)


class ExecutorConfig(Strict):
    """Where the tasks run. The output does not depend on it, nor on the number of tasks."""

    kind: Literal["local", "slurm", "ray"] = "local"
    tasks: int = Field(0, ge=0, description="Parts of the work; 0 = one per worker.")
    workers: int = Field(0, ge=0, description="Tasks at a time; 0 = one per core (local), all at once (slurm, ray).")
    cpus_per_task: int = Field(1, gt=0, description="slurm, ray.")
    mem_per_cpu_gb: int = Field(4, gt=0, description="slurm, ray.")
    partition: str | None = Field(None, description="slurm: the partition; required there.")
    time: str = Field("24:00:00", description="slurm: time limit of a task.")
    qos: str | None = Field(None, description="slurm.")
    env_command: str | None = Field(None, description="slurm: shell line that makes this package importable.")
    sbatch_args: dict[str, str] = Field(default_factory=dict, description="slurm: more #SBATCH lines, name -> value.")

    @model_validator(mode="after")
    def _possible(self) -> ExecutorConfig:
        if self.kind == "slurm" and not self.partition:
            refuse([Fault(("partition", "kind"), "missing; kind: slurm needs the name of a partition")])
        if self.kind != "local" and not self.tasks:
            refuse([Fault(("tasks", "kind"), f"missing; kind: {self.kind} needs the number of tasks")])
        return self


class CleanConfig(Strict):
    """A step runs if its section is there; ``{}`` takes its defaults."""

    sources: list[SourceConfig] = Field(min_length=1, description="Documents to clean, one or more sources.")
    out: str = Field(description="Folder for clean/, rejects/ and the report.")
    on_bad_row: Literal["error", "skip"] = Field("skip", description="What happens at a row that cannot be read.")
    block_mb: float = Field(
        8, gt=0, description="Text in one unit of work and one output file; the output's files depend on it."
    )
    tokenizer: str | None = Field(None, description="Folder of a tokenizer: the report counts tokens, too.")
    language: LanguageStep | None = None
    quality: QualityStep | None = None
    pii: PiiStep | None = None
    decontaminate: DecontaminateStep | None = None
    exact: ExactStep | None = None
    minhash: MinhashStep | None = None
    keep_work: bool = Field(False, description="Keep the intermediate files below OUT/work.")
    executor: ExecutorConfig = Field(default_factory=ExecutorConfig)


class CleanRecipe(Strict):
    """One run of ``sprout data clean``; told from a training recipe by its key ``clean``."""

    name: str = Field(min_length=1, pattern=r"^[\w.-]+$")
    clean: CleanConfig
