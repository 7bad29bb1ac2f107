"""Conversations on one thread: from rows to arrays, and what rendering costs beside encoding.

    python benchmarks/chats.py --data ../shared/data --out benchmarks/results/chats.json [--rows 8000] [--rounds 5]

Rows per second of CPU, medians of rounds in which the ways take turns. ``encode``: ``tokenizers.encode_batch`` on texts
that were rendered before, chunk by chunk as the others. ``rendered``: each conversation through the template.
``filled``: as ``prepare`` does it, conversations of one shape rendered once. ``rows_to_arrays``: all of a worker's part,
from JSON lines to ids and mask.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from data import INSTRUCTIONS, SEQ_LEN, VOCABULARY, machine, rows

CHUNK = 256  # rows at a time


def chunks(items: list[Any]) -> list[list[Any]]:
    return [items[at : at + CHUNK] for at in range(0, len(items), CHUNK)]


def measure(file: Path, tokenizer_dir: Path, rounds: int, most: int) -> dict[str, Any]:
    """Figures of one file."""
    import tokenizers

    from sproutlm.config.schema import SourceConfig
    from sproutlm.data.encode import Encoder
    from sproutlm.data.records import Chat
    from sproutlm.data.sources import Counts, open_source, record_from
    from sproutlm.tokenizer import ChatTemplate, Tokenizer

    tokenizer = Tokenizer.load(tokenizer_dir)
    template, plain = ChatTemplate.of(tokenizer), ChatTemplate.of(tokenizer)
    plain.shapes.usable = False  # every conversation through the template
    encoder = Encoder(tokenizer, template, SEQ_LEN, "skip", "auto")
    backend = tokenizers.Tokenizer.from_file(str(tokenizer_dir / "tokenizer.json"))
    source = open_source(SourceConfig(path=str(file)))
    raw = list(itertools.islice(source.rows, most))
    records = [record_from(row, source.door, "skip", Counts()) for row in raw]
    parts = chunks([(each.messages, each.tools) for each in records if isinstance(each, Chat)])
    shown = [template.render_batch(part) for part in parts]
    assert shown == [plain.render_batch(part) for part in parts]
    by_itself = template.shapes.rendered  # of these conversations, those whose shape cannot be filled
    texts = [[each.text for each in part] for part in shown]
    ways: dict[str, Callable[[], Any]] = {
        "encode": lambda: [[e.ids for e in backend.encode_batch(part, add_special_tokens=False)] for part in texts],
        "rendered": lambda: [plain.render_batch(part) for part in parts],
        "filled": lambda: [template.render_batch(part) for part in parts],
        "rows_to_arrays": lambda: [encoder.chunk(part, source.door) for part in chunks(raw)],
    }
    spent: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds):
        for name in list(ways) if number % 2 == 0 else reversed(ways):
            used = time.process_time()
            ways[name]()
            spent[name].append(time.process_time() - used)
    count = sum(map(len, parts))
    figures = {name: round(count / statistics.median(seconds)) for name, seconds in spent.items()}
    ratios = [a / b for a, b in zip(spent["rendered"], spent["filled"], strict=True)]
    return {
        "conversations": count,
        "rendered_by_themselves": by_itself,
        "rows_per_cpu_second": figures,
        "filled_times_as_fast_as_rendered": round(statistics.median(ratios), 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/chats.json"))
    parser.add_argument("--rows", type=int, default=8000)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    from sproutlm.tokenizer import train_tokenizer

    files = [arguments.data / name for name in INSTRUCTIONS]
    sample = (json.loads(line) for file in files for line in itertools.islice(rows(file), 0, None, 9))
    texts = ("\n".join(value for value in row.values() if isinstance(value, str)) for row in sample)
    report: dict[str, Any] = {"run": machine()}
    with tempfile.TemporaryDirectory(prefix="sprout-bench-") as folder:
        train_tokenizer(texts, VOCABULARY, max_bytes=8_000_000).save(folder)
        for file in files:
            report[file.name] = measure(file, Path(folder), arguments.rounds, arguments.rows)
            print(file.name, report[file.name], flush=True)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(arguments.out)


if __name__ == "__main__":
    main()
