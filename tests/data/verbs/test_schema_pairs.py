"""From every schema to every other and back: the same records, or a sentence that names what cannot be held."""

from __future__ import annotations

from pathlib import Path

import pytest

from sproutlm.config.data import SourceConfig
from sproutlm.data.formats import FORMATS
from sproutlm.data.sources import Counts, read_records
from sproutlm.data.verbs.convert import convert
from sproutlm.errors import DataError

FIXTURES = sorted((Path(__file__).resolve().parents[2] / "fixtures" / "schemas").glob("*"))


def records(path, name="auto"):
    counts = Counts()
    found = list(read_records([SourceConfig(path=str(path), format=name, role_order="any")], "skip", counts))
    counts.check()
    return found


@pytest.mark.parametrize("to", [known.name for known in FORMATS])
@pytest.mark.parametrize("path", FIXTURES, ids=lambda path: path.name)
def test_rows_keep_their_records_in_another_schema_or_are_refused(path, to, given, tmp_path):
    """What was kept is read back as the same records, in the same order; what was not is counted, with its reason."""
    name = "mixed" if path.name.startswith("mixed") else "auto"
    source = given(path, "skip", format=name, role_order="any")
    try:
        counts = convert(source, tmp_path / "there.csv", to=to)["counts"]
    except DataError as error:
        said = str(error)
        assert "none of its" in said and f"{path}:" in said and "\n" not in said
        return
    before, after = records(path, name), records(tmp_path / "there.csv", to)
    assert counts["rows_in"] == counts["records_out"] + sum(counts["dropped"].values())
    assert len(after) == counts["records_out"]
    remaining = iter(before)
    assert all(record in remaining for record in after)  # a subsequence of the same records
    if counts["dropped"]:
        assert counts["examples"] and all(f"{path}:" in example for example in counts["examples"])


def test_conversations_go_to_messages_and_back(given, tmp_path):
    """Every schema of conversations fits into messages, and comes back where its own schema can hold it."""
    chats = ("conversations", "instruction", "messages", "prompt_completion", "question_answer", "sharegpt")
    for path in (path for path in FIXTURES if path.name.split(".")[0] in chats and path.suffix == ".jsonl"):
        there, back = tmp_path / f"{path.stem}.there.parquet", tmp_path / f"{path.stem}.back.jsonl"
        report = convert(given(path, role_order="any"), there, to="messages")
        assert not report["counts"]["dropped"], path
        convert(given(there, role_order="any"), back, to=path.name.split(".")[0])
        assert records(back) == records(path)
