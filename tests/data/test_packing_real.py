"""Packing on data that people have: useful tokens, nothing lost, nothing that depends on the number of processes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sproutlm.config.schema import SourceConfig
from sproutlm.data import workers as workers_module
from sproutlm.data.loader import Loader
from sproutlm.data.packing import pack, packing_lines, packing_statistics
from sproutlm.data.prepare import prepare
from sproutlm.data.records import texts_of
from sproutlm.data.sources import Counts, read_records
from sproutlm.tokenizer import ChatTemplate, train_tokenizer

REAL = Path(__file__).resolve().parents[3] / "shared" / "data"
SETS = {
    "poems": ("pretrain/tang_poems_zh.jsonl.gz", 12_000),
    "alpaca_zh": ("sft/alpaca_zh.jsonl.gz", 2_500),
    "alpaca_en": ("sft/alpaca_en.jsonl.gz", 2_500),
    "gsm8k": ("sft/gsm8k_train.jsonl.gz", None),
    "wiki": ("pretrain/wiki_en.txt", None),
    "c4": ("pretrain/c4_en.jsonl", None),
}


# Whole answers of about 200 tokens cannot fill rows of 256 or 512; the share is what best fit reaches there.
SHORT_ROWS = {("poems", 256): 0.975, ("gsm8k", 256): 0.88, ("gsm8k", 512): 0.97}


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """``real(name)``: a real set as shards, by a tokenizer of a usual size trained on some of all sets."""
    if not REAL.is_dir():
        pytest.skip(f"{REAL} is absent")
    made = {}
    few = [SourceConfig(path=str(REAL / path), max_rows=700) for path, _ in SETS.values()]
    texts = (text for record in read_records(few, "skip", Counts()) for text in texts_of(record))
    tokenizer = train_tokenizer(texts, 4096, max_bytes=3_000_000)
    template = ChatTemplate.of(tokenizer)

    def of(name: str, **options):
        path, rows = SETS[name]
        key = (name, *sorted(options.items()))
        if key not in made:
            source = SourceConfig(path=str(REAL / path), max_rows=rows)
            folder = tmp_path_factory.mktemp(name)
            settings = {"seq_len": 2048, "on_bad_row": "skip", "workers": 1, "say": lambda _: None, **options}
            made[key] = prepare([source], tokenizer, template, folder, **settings)
        return made[key]

    return of


def useful(lengths: np.ndarray, seq_len: int) -> tuple[float, int]:
    """The share of useful tokens, and the number of rows; never less than unpacked."""
    packing = pack(lengths, seq_len)
    found = packing_statistics(lengths, packing, seq_len)
    assert found["useful_after"] >= found["useful_before"], packing_lines(found, "best_fit")  # wiki is one document
    return found["useful_after"], packing.n_rows


def test_at_least_99_percent_of_every_real_set_are_useful_tokens(real):
    """At rows of 2,048. A last row that is not full is no fault of the packing: of few rows it alone may be a percent."""
    for name in SETS:
        share, rows = useful(real(name).lengths, 2048)
        assert share >= 0.99 - 1 / rows, (name, share)


@pytest.mark.slow
@pytest.mark.parametrize("seq_len", [256, 512])
@pytest.mark.parametrize("name", SETS)
def test_short_rows_are_filled_as_far_as_whole_documents_allow(real, name, seq_len):
    share, rows = useful(real(name).lengths, seq_len)
    assert share >= SHORT_ROWS.get((name, seq_len), 0.99) - 1 / rows


def test_the_exact_multiset_of_tokens_is_kept_on_more_than_10000_rows(real):
    """Pitfall 11."""
    dataset = real("poems")
    assert dataset.n_documents > 10_000
    loader = Loader(dataset, seq_len=128, rows_per_step=256, seed=1, pad_id=-1)
    counted = np.zeros(dataset.vocab_size, dtype=np.int64)
    for start in range(0, loader.rows, 1000):
        tokens = loader.rows_batch(range(start, min(start + 1000, loader.rows))).tokens.numpy()
        counted += np.bincount(tokens[tokens >= 0], minlength=len(counted))
    assert (counted == np.bincount(dataset.read(0, dataset.n_tokens)[0], minlength=len(counted))).all()


@pytest.mark.slow
def test_batches_do_not_depend_on_the_number_of_workers(real, monkeypatch):
    monkeypatch.setattr(workers_module, "SMALL_BYTES", 0)
    one, two = (real("gsm8k", workers=n) for n in (1, 2))
    assert one.fingerprint == two.fingerprint
    batches = [Loader(d, seq_len=256, rows_per_step=8, seed=1).batch(11) for d in (one, two)]
    assert batches[0].tokens.equal(batches[1].tokens) and batches[0].targets.equal(batches[1].targets)


def test_statistics_are_counted_from_the_rows():
    lengths = np.array([6, 2, 4, 0, 4])
    found = packing_statistics(lengths, pack(lengths, 8), 8)
    assert found == {
        "documents": 4,
        "rows": 2,
        "documents_per_row": 2.0,
        "useful_before": 16 / 24,  # four rows, each as long as the longest
        "useful_after": 1.0,
    }
