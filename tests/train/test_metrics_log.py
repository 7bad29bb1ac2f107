"""Metrics on disk, the console lines, the plot."""

from __future__ import annotations

from pathlib import Path

from sproutlm.train.metrics import Console, MetricsLog, format_seconds, memory_mb, plot_losses, read_metrics


def test_rewinding_forgets_what_came_after_and_keeps_every_kind_of_row(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    rows = [
        {"step": 1, "loss": 2.0},
        {"step": 2, "val_loss": 1.5},
        {"step": 2, "sample": "春"},
        {"step": 3, "loss": 1.0},
    ]
    for row in rows:
        log.write(row)
    log.rewind(2)
    assert read_metrics(log.path) == rows[:3]
    log.rewind(-1)
    assert read_metrics(log.path) == []


def test_a_metrics_file_that_is_not_there_yet_can_be_rewound(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "run" / "metrics.jsonl")
    log.rewind(5)
    log.write({"step": 1})
    assert read_metrics(log.path) == [{"step": 1}]


def test_a_line_cut_off_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2, "lo')
    assert read_metrics(path) == [{"step": 1}]


def test_numbers_are_stored_to_the_last_bit(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.write({"step": 1, "loss": 0.1 + 0.2})
    assert read_metrics(log.path)[0]["loss"] == 0.1 + 0.2


def test_the_console_shows_loss_rate_memory_and_eta() -> None:
    said: list[str] = []
    console = Console(50, said.append)
    row = {
        "step": 7,
        "loss": 3.14159,
        "lr_multiplier": 0.5,
        "grad_norm": 1.25,
        "tokens_per_second": 12345.6,
        "memory_mb": 321.0,
    }
    console.step(row, eta=75)
    console.step(row | {"step": 8}, eta=74)  # within five seconds: a pipe is not flooded
    console.step(row | {"step": 50}, eta=0, final=True)
    assert len(said) == 2 and "step 50/50" in said[1]
    assert all(part in said[0] for part in ("step 7/50", "loss 3.1416", "12,346 tok/s", "321 MB", "ETA 1m15s"))


def test_durations_are_written_for_people() -> None:
    assert [format_seconds(s) for s in (0, 59.6, 3599, 3600 * 26)] == ["0m00s", "1m00s", "59m59s", "26h00m"]


def test_memory_is_that_of_this_process() -> None:
    assert 20 < memory_mb() < 100_000


def test_the_plot_is_a_png_with_a_panel_for_each_stage(tmp_path: Path) -> None:
    for name in ("pretrain", "sft"):
        log = MetricsLog(tmp_path / f"{name}.jsonl")
        for step in range(3):
            log.write({"step": step, "tokens": step * 10, "loss": 3.0 - step})
        log.write({"step": 2, "tokens": 20, "val_loss": float("nan")})
    out = tmp_path / "loss.png"
    plot_losses({"预训练 pretrain": tmp_path / "pretrain.jsonl", "sft": tmp_path / "sft.jsonl"}, out)
    assert out.read_bytes().startswith(b"\x89PNG")
    assert not list(tmp_path.glob(".*"))
