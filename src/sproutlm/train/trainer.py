"""The one loop, for every stage: gradients of a window of micro-batches, divided once, clipped, applied, recorded."""

from __future__ import annotations

import hashlib
import inspect
import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from ..config.schema import OptimizerConfig, ScheduleConfig, TrainConfig
from ..data.loader import Batch
from ..errors import CheckpointError, Interrupted, SproutError
from ..model import Transformer
from .ahead import Ahead
from .checkpoint import Checkpointer
from .compile import compile_blocks, wanted as compile_wanted
from .loss_scale import LossScale
from .metrics import Console, memory_mb
from .optim import Optimizers, is_expert_bias
from .precision import MasterWeights
from .saver import BackgroundSaver
from .schedule import multiplier
from .streams import Streams
from .trackers import Tracker
from .watch import Watch, Work

Objective = Callable[[Transformer, Batch], tuple[Tensor, int, dict[str, tuple[float, float]]]]
Evaluator = Callable[[Transformer, int], dict[str, float]]
Sampler = Callable[[Transformer, int], Sequence[str | dict[str, Any]]]  # a text, or a row with it as ``sample``


class BatchSource(Protocol):
    """What the trainer needs of a loader: ``batch(step)``, a pure function."""

    def batch(self, step: int, rank: int = 0, world_size: int = 1) -> Batch: ...


@dataclass
class TrainState:
    """Everything beside tensors that the next step depends on. Data order and dropout follow from ``step`` alone."""

    step: int = 0
    tokens: int = 0
    window_loss: float = 0.0  # sums since the last logged step
    window_count: int = 0
    window_metrics: dict[str, list[float]] = field(default_factory=dict)  # the objective's own: [sum, count] by name
    best: float | None = None
    best_step: int | None = None
    validations_without_best: int = 0
    loss_scale: LossScale | None = None  # of fp16

    @classmethod
    def restored(cls, stored: dict[str, Any]) -> TrainState:
        """What ``asdict`` gave, of this version or an earlier one."""
        scale = stored.get("loss_scale")
        return cls(**{**stored, "loss_scale": None if scale is None else LossScale(**scale)})


@dataclass(frozen=True)
class TrainResult:
    step: int
    tokens: int
    loss: float
    validation: dict[str, float]
    seconds: float
    resumed_from: int
    stopped_early: bool


def stream_seed(seed: int, step: int, micro: int) -> int:
    """Seed of the dropout stream of one micro-batch: known from the step, so no generator state is ever saved."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{step}/{micro}".encode()).digest()[:7], "little")


class Trainer:
    """Trains ``model`` on ``loader``. Evaluators and the sampler are handed in; ``checkpoint_files`` describe the run.

    ``evaluators`` return figures by name; ``val_loss`` decides best and early stopping. ``identity`` is what must be
    equal for a checkpoint to be continued (fingerprints of data, tokenizer, recipe); the caller compares it.
    """

    def __init__(
        self,
        model: Transformer,
        objective: Objective,
        loader: BatchSource,
        *,
        optimizer: OptimizerConfig,
        schedule: ScheduleConfig,
        config: TrainConfig,
        total_steps: int,
        micro_rows: int,
        seed: int,
        streams: int = 1,
        compute: torch.dtype,
        checkpointer: Checkpointer,
        metrics: Tracker,
        checkpoint_files: dict[str, str],
        identity: dict[str, Any],
        evaluators: list[Evaluator] | None = None,
        sampler: Sampler | None = None,
        work: Work | None = None,
        say: Callable[[str], None] = print,
    ) -> None:
        self.model, self.objective, self.loader = model, objective, loader
        self.schedule, self.config = schedule, config
        self.total_steps, self.micro_rows, self.seed = total_steps, micro_rows, seed
        self.checkpointer, self.metrics = checkpointer, metrics
        self._saver = BackgroundSaver(checkpointer)
        self.checkpoint_files, self.identity = checkpoint_files, identity
        self.evaluators, self.sampler, self.say = evaluators or [], sampler, say
        self.device = next(model.parameters()).device
        # Dropout draws from one generator for the whole process: with it, micro-batches take turns.
        draws = any(isinstance(m, torch.nn.Dropout) and m.p > 0 for m in model.modules())
        side_by_side = streams > 1 and self.device.type == "cpu" and not draws
        self.streams = Streams(streams) if side_by_side else None
        on_gpu = self.device.type == "cuda"
        self._ahead = Ahead(loader.batch, total_steps, pinned=True) if on_gpu else None
        model.checkpointing = config.checkpointing
        self.weights = MasterWeights(model, compute)
        moe = getattr(getattr(model, "config", None), "moe", None)
        rate = moe.bias_rate if moe is not None else 0.0
        # Muon rounds an update before it norms it: in fp16 it could be rounded to nothing.
        muon_dtype = torch.float32 if compute == torch.float16 else compute
        self.optimizers = Optimizers(optimizer, self.weights.masters, muon_dtype, rate)
        self.watch = Watch(self.weights.masters, filter(is_expert_bias, self.weights.masters), work)
        self.state = TrainState()
        self._takes_scale = compute == torch.float16 and "scale" in inspect.signature(objective).parameters
        self.console = Console(total_steps, say)
        self._stop_signal: int | None = None
        self._timed_tokens, self._timed_seconds = 0, 0.0

    # --- one step -----------------------------------------------------------------------------------------------------

    def train_step(self, step: int) -> tuple[float, int, float]:
        """One optimizer step. Returns the summed loss, the number of trained targets, and the gradient norm; a norm that is
        not finite is that of fp16's overflow, after which nothing was updated."""
        asked = time.perf_counter()
        batch = self.loader.batch(step) if self._ahead is None else self._ahead.batch(step)
        self.watch.batch(time.perf_counter() - asked, batch.tokens.numel())
        scale = self._loss_scale()
        factor = 1.0 if scale is None else scale.factor(batch.tokens.numel())
        parts = list(self._micro_batches(step, batch.split(self.micro_rows), factor))
        count = sum(part_count for _, part_count in parts)
        if count == 0:
            raise SproutError(f"step {step + 1}: no row of the batch trains a token; see `sprout data inspect`")
        # The one time in a step that a GPU is waited for: no update is made of gradients that are not finite.
        read = torch.stack([self._divide(count * factor).double(), *(loss.double() for loss, _ in parts)]).tolist()
        norm, loss_sum = read[0], sum(read[1:])
        if math.isfinite(loss_sum) and not math.isfinite(norm) and scale is not None and scale.overflowed():
            self._leave_out_update(step, scale)
            return loss_sum, count, norm
        if not (math.isfinite(norm) and math.isfinite(loss_sum)):
            rows = ", ".join(map(str, batch.row_ids.tolist()[:16]))
            raise SproutError(
                f"step {step + 1}: the loss or gradient is not finite (loss {loss_sum / count}, gradient norm {norm}); "
                f"rows {rows}. The weights are those of step {step}. Lower optimizer.lr, or look at these rows."
            )
        self._clip(norm)
        logged = self._due(self.config.log_every, step + 1)
        if logged:
            self.watch.before_update()
        self._saver.wait_for_copy()  # the update changes what a save under way copies
        self.optimizers.step(multiplier(self.schedule, step, self.total_steps), step / max(1, self.total_steps))
        if logged:
            self.watch.after_update()
        self.weights.free_gradients()
        self.weights.publish()
        if scale is not None:
            scale.finite()
        return loss_sum, count, norm

    def _loss_scale(self) -> LossScale | None:
        if self.weights.compute == torch.float16 and self.state.loss_scale is None:
            self.state.loss_scale = LossScale()
        return self.state.loss_scale

    def _leave_out_update(self, step: int, scale: LossScale) -> None:
        self.weights.free_gradients()
        self.watch.gradients((), ())
        self.console.line(
            f"step {step + 1}: fp16 gradients overflowed; this update is left out ({scale.skipped} so far), the loss scale "
            f"is now {scale.scale:g}"
        )

    def _micro_batches(self, step: int, parts: list[Batch], factor: float) -> Iterator[tuple[Tensor, int]]:
        """Add each part's gradient times ``factor`` to the masters', its metrics to the window's, in order; gives its loss
        and count. An objective with a parameter ``scale`` is told the factor, so that it can round at that size."""
        objective = self.objective
        if self._takes_scale:
            objective = partial(objective, scale=factor)  # type: ignore[call-arg]
        if self.streams is not None:
            for loss, count, grads, metrics in self.streams.run(self.model, objective, parts, factor):
                self.weights.add_gradients(grads)
                self._add_metrics(metrics)
                yield loss, count
            return
        for micro, part in enumerate(parts):
            torch.manual_seed(stream_seed(self.seed, step, micro))
            part_loss, part_count, metrics = objective(self.model, part.to(self.device))
            if part_count == 0:
                continue  # nothing to train here; the step's count says so
            (part_loss * factor).backward()
            self.weights.collect_gradients()
            self._add_metrics(metrics)
            yield part_loss.detach(), part_count

    def _add_metrics(self, metrics: dict[str, tuple[float, float]]) -> None:
        """Add an objective's (sum, count) of each name to the window's."""
        for name, (total, count) in metrics.items():
            window = self.state.window_metrics.setdefault(name, [0.0, 0.0])
            window[0] += float(total)
            window[1] += float(count)

    def _divide(self, count: float) -> Tensor:
        """Divide the summed gradients once, by the count of the whole window (times what they were scaled by, a power of
        two); return their norm, on the device."""
        named = self._clipped()
        grads = list(named.values())
        torch._foreach_div_(grads, float(count))
        norms = torch._foreach_norm(grads)
        self.watch.gradients(list(named), norms)
        return torch.linalg.vector_norm(torch.stack(norms))

    def _clip(self, norm: float) -> None:
        if self.config.clip and norm > self.config.clip:
            torch._foreach_mul_(list(self._clipped().values()), self.config.clip / norm)

    def _clipped(self) -> dict[str, Tensor]:
        """Gradients by name. What steers expert biases is no gradient of the loss: only its sign counts, and it must not
        weigh in the norm."""
        masters = self.weights.masters.items()
        return {n: m.grad for n, m in masters if m.grad is not None and not is_expert_bias(n)}

    # --- the run ------------------------------------------------------------------------------------------------------

    def fit(self) -> TrainResult:
        """Train to the end, or to the next step boundary after SIGTERM or SIGINT (saved, then ``Interrupted``)."""
        started = time.perf_counter()
        resumed_from = self._resume()
        loss, validation = math.nan, {}
        # A run that stopped early is finished: the same command again trains no further.
        stopped_early = 0 < self.config.early_stop <= self.state.validations_without_best
        self.model.train()
        if self.state.step < self.total_steps and compile_wanted(self.config.compile, self.device):
            self._compile()
        with self._signals():
            while self.state.step < self.total_steps and not stopped_early:
                begin = time.perf_counter()
                loss_sum, count, norm = self.train_step(self.state.step)
                self.state.step += 1
                self.state.tokens += count
                self.state.window_loss += loss_sum
                self.state.window_count += count
                if self.state.step > resumed_from + 1:  # the first step pays for warm-up; it is not in the rate
                    self._timed_tokens += count
                    seconds = time.perf_counter() - begin
                    self._timed_seconds += seconds
                    self.watch.step(seconds)
                last = self.state.step == self.total_steps
                if self._due(self.config.log_every):
                    loss = self._log(norm, last)
                if self._due(self.config.validate_every):
                    validation = self._validate()
                    patience = self.config.early_stop
                    stopped_early = bool(patience) and self.state.validations_without_best >= patience
                if stopped_early or self._due(self.config.sample_every):
                    self._sample()
                new_best = self.config.validate_every > 0 and self.state.best_step == self.state.step
                regular = self.state.step % self.config.save_every == 0
                stop = self._stop_signal  # one that comes from here on is for the next step
                ends = last or stopped_early or stop is not None
                if ends or regular or new_best:
                    self.save(durable=ends)
                else:
                    self._saver.check()
                if stop is not None and not (last or stopped_early):
                    name = signal.Signals(stop).name
                    raise Interrupted(
                        f"{name}: saved at step {self.state.step} of {self.total_steps}; the same command continues it"
                    )
        if stopped_early:
            self.say(f"stopped early: no better validation loss for {self.config.early_stop} validations")
        return TrainResult(
            self.state.step,
            self.state.tokens,
            loss,
            validation,
            time.perf_counter() - started,
            resumed_from,
            stopped_early,
        )

    def _compile(self) -> None:
        part = self.loader.batch(self.state.step).split(self.micro_rows)[0]
        thread = None if self.streams is None else self.streams.pool
        rows, seq = part.tokens.shape
        compile_blocks(self.model, rows, seq, masked=part.document_ids is not None, say=self.say, thread=thread)

    def close(self) -> None:
        """End the threads that micro-batches and batches ran on, and what records the run; a checkpoint that is still being
        written is waited for first."""
        try:  # where the run ends by an exception already, that is the sentence to end with
            self._saver.finish(self.say if sys.exc_info()[1] else None)
        finally:
            if self.streams is not None:
                self.streams.close()
            if self._ahead is not None:
                self._ahead.close()
            self.metrics.close()

    def _due(self, every: int, step: int | None = None) -> bool:
        """Whether what is done every so many steps is due after ``step`` (default: this one); the last step has all."""
        step = self.state.step if step is None else step
        return step == self.total_steps or (every > 0 and step % every == 0)

    def _log(self, norm: float, last: bool) -> float:
        state = self.state
        loss = state.window_loss / state.window_count
        rate = self._timed_tokens / self._timed_seconds if self._timed_seconds else 0.0
        done_steps = max(1, state.step)
        row = {
            "step": state.step,
            "tokens": state.tokens,
            "loss": loss,
            "lr_multiplier": multiplier(self.schedule, state.step - 1, self.total_steps),
        }
        if math.isfinite(norm):
            row["grad_norm"] = norm
        if state.loss_scale is not None:
            row |= {"loss_scale": state.loss_scale.scale, "updates_left_out": state.loss_scale.skipped}
        row |= {
            "tokens_per_second": round(rate, 1),
            "memory_mb": memory_mb(),
        }
        row["lr"] = row["lr_multiplier"] * self.optimizers.config.lr
        row |= self.watch.figures(self.optimizers.optimizers)
        for name, (total, count) in state.window_metrics.items():
            if name in row:
                raise SproutError(f"the objective's metric {name!r} has the name of a figure of the trainer; rename it")
            if count:
                row[name] = total / count
        self.metrics.write(row)
        tokens_left = state.tokens / done_steps * (self.total_steps - state.step)
        self.console.step(row, tokens_left / rate if rate else 0.0, final=last)
        state.window_loss, state.window_count, state.window_metrics = 0.0, 0, {}
        return loss

    def _validate(self) -> dict[str, float]:
        figures: dict[str, float] = {}
        for evaluator in self.evaluators:
            figures.update(evaluator(self.model, self.state.step))
        self.model.train()
        if not figures:
            return figures
        self.metrics.write({"step": self.state.step, "tokens": self.state.tokens, **figures})
        self.console.line(f"step {self.state.step}: " + "  ".join(f"{k} {v:.4f}" for k, v in figures.items()))
        value = figures.get("val_loss")
        if value is not None:
            if self.state.best is None or value < self.state.best:
                self.state.best, self.state.best_step = value, self.state.step
                self.state.validations_without_best = 0
            else:
                self.state.validations_without_best += 1
        return figures

    def _sample(self) -> None:
        if self.sampler is None:
            return
        for found in self.sampler(self.model, self.state.step):
            row = {"sample": found} if isinstance(found, str) else found
            self.metrics.write({"step": self.state.step, "tokens": self.state.tokens, **row})
            self.console.line(f"  sample: {row['sample']}")
        self.model.train()

    # --- checkpoints --------------------------------------------------------------------------------------------------

    def save(self, durable: bool = True) -> None:
        """Save the state of this step; where it need not be ``durable`` on return and the recipe says ``async_save``, beside
        the next steps."""
        contents = (
            self.state.step,
            self.weights.masters,
            self.optimizers.tensors(),
            {"state": asdict(self.state), "identity": self.identity, "torch": torch.__version__},
            self.checkpoint_files,
            {self.state.best_step} if self.state.best_step else set(),
        )
        if self.config.async_save and not durable:
            self._saver.save(*contents)
        else:
            self._saver.finish(self.say)  # a fault of the one before is past when this one is written
            self.checkpointer.save(*contents)

    def _resume(self) -> int:
        checkpoint = self.checkpointer.latest()
        if checkpoint is None:
            self.metrics.rewind(-1)
            return 0
        try:
            self.weights.load(checkpoint.model_tensors())
            self.optimizers.load_tensors(checkpoint.optimizer_tensors())
        except ValueError as error:  # a change was asked for that these tensors cannot follow
            raise CheckpointError(
                f"{checkpoint.path} does not fit what this recipe builds: {error}; begin in another folder (run=DIR)"
            ) from error
        self.state = TrainState.restored(checkpoint.state()["state"])
        self.metrics.rewind(self.state.step)
        self.say(f"continuing from step {self.state.step} of {self.total_steps} ({checkpoint.path})")
        return self.state.step

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """SIGTERM and the first SIGINT ask for a save at the next step boundary; a second SIGINT stops at once."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def ask(number: int, frame: Any) -> None:
            if self._stop_signal == signal.SIGINT and number == signal.SIGINT:
                raise KeyboardInterrupt
            self._stop_signal = number
            with suppress(RuntimeError):  # Python refuses to print when the signal came in the middle of a print
                self.say(f"{signal.Signals(number).name} received: saving after this step (Ctrl-C again stops at once)")

        previous = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
