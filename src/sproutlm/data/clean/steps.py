"""The steps that judge one document by itself: language, quality, PII, decontamination.

A step looks at a list of documents at a time; of each it says why it is rejected, or None, and may change its text.
"""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from ...config.clean import CleanConfig, DecontaminateStep, EnglishRules, LanguageStep, PiiStep, QualityStep
from . import chinese
from .decontaminate import Index
from .language import CJK_SHARE, LanguageIdentifier, cjk_share
from .pii import mask


@dataclass(slots=True)
class Doc:
    """A document on its way; ``detail`` goes into the row of rejects beside the reason."""

    id: str
    text: str
    detail: dict[str, Any] = field(default_factory=dict)


class Step(Protocol):
    name: str
    changed: Counter[str]

    def judge(self, docs: Sequence[Doc]) -> list[str | None]: ...


class Language:
    name = "language"

    def __init__(self, step: LanguageStep) -> None:
        self.step, self.changed = step, Counter[str]()
        self.identifier = LanguageIdentifier(step.model)

    def judge(self, docs: Sequence[Doc]) -> list[str | None]:
        return [self._judge(doc) for doc in docs]

    def _judge(self, doc: Doc) -> str | None:
        language, score = self.identifier.identify(doc.text)
        if language in self.step.keep and score >= self.step.min_score:
            return None
        doc.detail |= {"language": language, "score": round(score, 3)}
        return "language_uncertain" if language in self.step.keep else "language_other"


class Quality:
    """One of the rules of ``QualityStep``; a document is judged by characters or by words, as its letters are."""

    def __init__(self, rule: str, step: QualityStep) -> None:
        self.name, self.step, self.changed = rule, step, Counter[str]()
        self._by_words: Any = None

    def judge(self, docs: Sequence[Doc]) -> list[str | None]:
        return [self._judge(doc) for doc in docs]

    def _judge(self, doc: Doc) -> str | None:
        if not doc.text.strip():
            return "empty"
        if cjk_share(doc.text) < CJK_SHARE:
            if self._by_words is None:
                self._by_words = english_filter(self.name, self.step.en)
            return self._judge_words(doc)
        if self.name == "c4":
            reason, doc.text = chinese.c4(doc.text, self.step.zh, self.changed)
            return reason
        return getattr(chinese, self.name)(doc.text, self.step.zh)

    def _judge_words(self, doc: Doc) -> str | None:
        from datatrove.data import Document

        document = Document(text=doc.text, id=doc.id)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the mean of no words, in text of symbols alone
            try:
                result = self._by_words.filter(document)
            except ZeroDivisionError:  # no word or line left to divide by
                return f"{_PREFIX[self.name]}no_words"
        kept, reason = result if isinstance(result, tuple) else (result, None)
        if kept:
            if document.text != doc.text:
                before, after = len(doc.text.splitlines()), len(document.text.splitlines())
                self.changed["lines removed" if after < before else "lines shortened"] += max(1, before - after)
                doc.text = document.text
            return None
        name = re.sub(r"\W+", "_", str(reason or "rejected")).strip("_")
        return name if name.startswith(("gopher", "dup", "top")) else _PREFIX[self.name] + name


_PREFIX = {"gopher_quality": "gopher_", "gopher_repetition": "repetition_", "c4": "c4_", "fineweb": "fineweb_"}


def english_filter(rule: str, rules: EnglishRules) -> Any:
    """datatrove's own filter for a rule, with the recipe's thresholds."""
    from datatrove.pipeline.filters import (
        C4QualityFilter,
        FineWebQualityFilter,
        GopherQualityFilter,
        GopherRepetitionFilter,
    )

    if rule == "gopher_quality":
        return GopherQualityFilter(
            min_doc_words=rules.min_words,
            max_doc_words=rules.max_words,
            min_avg_word_length=rules.min_mean_word_length,  # type: ignore[arg-type]
            max_avg_word_length=rules.max_mean_word_length,  # type: ignore[arg-type]
            max_symbol_word_ratio=rules.max_symbol_ratio,
            max_bullet_lines_ratio=rules.max_bullet_lines,
            max_ellipsis_lines_ratio=rules.max_ellipsis_lines,
            max_non_alpha_words_ratio=rules.min_alphabetic_words,
            min_stop_words=rules.min_stop_words,
            stop_words=rules.stop_words,
        )
    if rule == "gopher_repetition":
        return GopherRepetitionFilter(dup_line_frac=rules.max_duplicate_lines)
    if rule == "c4":
        return C4QualityFilter(
            min_num_sentences=rules.min_sentences,
            min_words_per_line=rules.min_words_per_line,
            filter_curly_bracket=rules.refuse_curly_brackets,
        )
    return FineWebQualityFilter(
        line_punct_thr=rules.min_lines_with_punctuation,
        short_line_thr=rules.max_short_lines,
        short_line_length=rules.short_line,
        char_duplicates_ratio=rules.max_duplicate_line_characters,
        new_line_ratio=rules.max_newlines,
    )


class Pii:
    name = "pii"

    def __init__(self, step: PiiStep) -> None:
        self.step, self.changed = step, Counter[str]()

    def judge(self, docs: Sequence[Doc]) -> list[str | None]:
        for doc in docs:
            doc.text = mask(doc.text, self.step, self.changed)
        return [None] * len(docs)


class Decontaminate:
    name = "decontaminate"

    def __init__(self, step: DecontaminateStep, index: Path) -> None:
        self.changed = Counter[str]()
        self.index = Index.load(index)

    def judge(self, docs: Sequence[Doc]) -> list[str | None]:
        found = self.index.matches([doc.text for doc in docs])
        for doc, name in zip(docs, found, strict=True):
            if name is not None:
                doc.detail["evaluation_set"] = name
        return [None if name is None else "contaminated" for name in found]


def make_steps(config: CleanConfig, index: Path) -> list[Step]:
    """The recipe's steps, in the order in which they run. ``index`` is the file that ``build_index`` made."""
    steps: list[Step] = []
    if config.language is not None:
        steps.append(Language(config.language))
    if config.quality is not None:
        steps += [Quality(rule, config.quality) for rule in config.quality.rules]
    if config.pii is not None:
        steps.append(Pii(config.pii))
    if config.decontaminate is not None:
        steps.append(Decontaminate(config.decontaminate, index))
    return steps


def step_names(config: CleanConfig) -> list[str]:
    """The names of all steps that the report lists after ``read``."""
    names = ["language"] if config.language is not None else []
    names += config.quality.rules if config.quality is not None else []
    return names + [name for name in ("pii", "decontaminate", "exact", "minhash") if getattr(config, name) is not None]
