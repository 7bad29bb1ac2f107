"""A file that changes between two passes is refused: the second would write other rows than the first looked at."""

from __future__ import annotations

import pytest

from sproutlm.data.sources import Counts
from sproutlm.errors import DataError


@pytest.mark.parametrize(
    "after",
    [
        '{"text": "a"}\n{"text": "b"}\n{"text": "more"}\n',
        '{"text": "a"}\n',
        '{"text": "a"}\n{broken\n',
    ],
)
def test_a_file_that_changes_between_passes_is_refused(after, given, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "a"}\n{"text": "b"}\n')
    source = given(path)
    assert len(list(source.records(Counts(), "reading", source.door()))) == 2
    path.write_text(after)
    with pytest.raises(DataError, match="rows.jsonl: changed while it was read"):
        list(source.again("reading"))


def test_a_second_pass_gives_the_usable_rows_of_the_first(given, write):
    source = given(write([{"text": "a"}, {"text": ""}, {"text": 5}, {"text": "{{n}}"}]), "skip", fill={"n": "N"})
    counts = Counts()
    first = [row.value for row, _ in source.records(counts, "reading", source.door())]
    assert [row.value for row in source.again("reading")] == [{"text": "a"}, {"text": "N"}]
    assert len(first) == 2 and counts.rows_in == 4 and counts.dropped.total() == 2
