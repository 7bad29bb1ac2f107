"""Every way in which a person writes where something is."""

from __future__ import annotations

from pathlib import Path

import pytest

from sproutlm.errors import SproutError
from sproutlm.hub.address import Kind, parse_address
from sproutlm.hub.next_steps import next_steps


@pytest.mark.parametrize(
    ("text", "kind", "repo", "revision", "pattern"),
    [
        ("hf://datasets/a/b", "data", "a/b", None, None),
        ("hf://datasets/a/b/data/*.parquet", "data", "a/b", None, "data/*.parquet"),
        ("hf://datasets/a/b@v1.0/x.jsonl", "data", "a/b", "v1.0", "x.jsonl"),
        (
            "hf://datasets/a/b@refs/convert/parquet/default/train",
            "data",
            "a/b",
            "refs/convert/parquet",
            "default/train",
        ),
        ("hf://datasets/a/b@refs%2Fpr%2F3", "data", "a/b", "refs/pr/3", None),
        ("hf://a/b", "model", "a/b", None, None),
        ("hf://models/a/b@main", "model", "a/b", "main", None),
        ("hf://gpt2", "model", "gpt2", None, None),
        ("modelscope://datasets/a/b@master/y", "data", "a/b", "master", "y"),
        ("ms://a/b", "model", "a/b", None, None),
        ("https://huggingface.co/datasets/a/b", "data", "a/b", None, None),
        ("https://huggingface.co/datasets/a/b/tree/main/data", "data", "a/b", "main", "data"),
        ("https://hf-mirror.com/datasets/a/b/resolve/v2/x.jsonl?download=true", "data", "a/b", "v2", "x.jsonl"),
        ("https://huggingface.co/a/b/blob/main/config.json", "model", "a/b", "main", "config.json"),
        ("https://www.modelscope.cn/models/a/b/summary", "model", "a/b", None, None),
        ("https://modelscope.cn/datasets/a/b/files", "data", "a/b", None, None),
    ],
)
def test_an_address_is_read(text: str, kind: Kind, repo: str, revision: str | None, pattern: str | None) -> None:
    found = parse_address(text, kind)
    assert (found.kind, found.repo, found.revision, found.pattern) == (kind, repo, revision, pattern)
    assert parse_address(str(found), kind) == found  # what is printed can be typed


@pytest.mark.parametrize(
    ("text", "kind", "sentence"),
    [
        ("hf://a/b", "data", "use hf://datasets/a/b for the data set"),
        ("hf://datasets/a/b", "model", "use: sprout data download hf://datasets/a/b"),
        ("s3://bucket/x", "data", "s3:// is not known"),
        ("hf://datasets/a b/c", "data", "no OWNER/NAME"),
        ("hf://datasets/", "data", "no OWNER/NAME"),
        ("hf://spaces/a/b", "model", "spaces cannot be downloaded"),
        ("hf://datasets/a/b@", "data", "nothing stands after @"),
        ("modelscope://gpt2", "model", "the owner is missing"),
        ("https://example.org/x.jsonl", "data", "curl -L -C - -O URL"),
        ("file:///nowhere/at/all", "data", "no such folder"),
        ("", "model", "names nothing"),  # as a path it would be the folder that one stands in, copied whole
        ("hf:///tmp", "model", "is given without hf://"),
        ("hf://../x", "model", "no OWNER/NAME"),
    ],
)
def test_what_is_no_address_is_one_sentence_with_the_cure(text: str, kind: Kind, sentence: str) -> None:
    with pytest.raises(SproutError) as caught:
        parse_address(text, kind)
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    ("files", "path"),
    [
        (["README.md", "train.jsonl"], "d/train.jsonl"),
        (["data/train-0.parquet", "data/train-1.parquet", "data/test-0.parquet"], "d/data/*train*.parquet"),
        (["a.jsonl.gz", "b.jsonl.gz", "dataset_infos.json"], "d/*.jsonl.gz"),
        (["en/a.csv", "zh/b.csv"], "d/**/*.csv"),
    ],
)
def test_the_printed_recipe_reads_the_rows_and_nothing_else(files: list[str], path: str) -> None:
    lines = next_steps("data", Path("d"), files, None)
    assert f"      - path: {path}" in lines
    from sproutlm.hub.listing import matches

    assert [name for name in files if matches(name, path.removeprefix("d/").replace("**/", ""))]


def test_what_cannot_be_inspected_yet_is_only_validated_and_questions_stay_out() -> None:
    from sproutlm.hub.catalogue import find

    lines = "\n".join(next_steps("data", Path("d"), ["plain_text/train-0.parquet"], find("sms-spam", "data")))
    assert "sprout data validate 'd/plain_text/train-*.parquet' --format labelled --columns text=sms" in lines
    assert "inspect" not in lines and "columns: {text: sms}" in lines
    assert next_steps("data", Path("d"), ["test.csv"], find("cmmlu", "data")) == [
        "for evaluation: keep d out of what you train on"
    ]


def test_a_packed_file_is_to_be_unpacked_first() -> None:
    (line,) = next_steps("data", Path("data/x"), ["corpus.jsonl.tar.bz2"], None)
    assert "tar -xf data/x/corpus.jsonl.tar.bz2 -C data/x" in line
