"""The one loop, for every stage: gradients of a window of micro-batches, divided once, clipped, applied, recorded."""

from __future__ import annotations

import inspect
import math
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from ..config.schema import OptimizerConfig, ScheduleConfig, TrainConfig
from ..data.loader import Batch
from ..distributed.agreement import check_agreement, collect_together, garbage_kept, suspects
from ..distributed.layout import Layout
from ..errors import CheckpointError, Interrupted, SproutError
from ..model import Transformer
from .ahead import Ahead
from .checkpoint import Checkpointer
from .compile import compile_blocks, wanted as compile_wanted
from .loss_scale import LossScale
from .metrics import Console, memory_mb
from .optim import Optimizers, is_expert_bias
from .precision import MasterWeights
from .rank_checkpoint import RankCheckpointer
from .saver import BackgroundSaver
from .schedule import multiplier
from .sharded import ShardedWeights
from .signals import StopSignal
from .state import TrainResult, TrainState, stream_seed
from .streams import Streams
from .trackers import Tracker
from .watch import Watch, Work

Objective = Callable[[Transformer, Batch], tuple[Tensor, int, dict[str, tuple[float, float]]]]
Evaluator = Callable[[Transformer, int], dict[str, float]]
Sampler = Callable[[Transformer, int], Sequence[str | dict[str, Any]]]  # a text, or a row with it as ``sample``


class BatchSource(Protocol):
    """What the trainer needs of a loader: ``batch(step)``, a pure function."""

    def batch(self, step: int, rank: int = 0, world_size: int = 1) -> Batch: ...


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
        layout: Layout | None = None,
        check_every: int = 0,
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
        self.layout = layout or Layout()
        self.ranks, self.check_every = self.layout.ranks, check_every
        # Dropout draws from one generator for the whole process: with it, micro-batches take turns.
        draws = any(isinstance(m, torch.nn.Dropout) and m.p > 0 for m in model.modules())
        side_by_side = streams > 1 and self.device.type == "cpu" and not draws and not self.layout.exchanges
        self.streams = Streams(streams) if side_by_side else None
        on_gpu = self.device.type == "cuda"
        self._ahead = Ahead(self._batch, total_steps, pinned=True) if on_gpu else None
        model.checkpointing = config.checkpointing
        self.weights = (ShardedWeights if self.ranks.dims.shard > 1 else MasterWeights)(model, compute)
        moe = getattr(getattr(model, "config", None), "moe", None)
        rate = moe.bias_rate if moe is not None else 0.0
        # Muon rounds an update before it norms it: in fp16 it could be rounded to nothing.
        muon_dtype = torch.float32 if compute == torch.float16 else compute
        self.optimizers = Optimizers(optimizer, self.weights.masters, muon_dtype, rate, self.layout)
        if isinstance(checkpointer, RankCheckpointer):
            checkpointer.share(self.layout, self.optimizers.pieces())
        self.watch = Watch(self.weights.masters, filter(is_expert_bias, self.weights.masters), work)
        self.state = TrainState()
        self._takes_scale = compute == torch.float16 and "scale" in inspect.signature(objective).parameters
        self.console = Console(total_steps, say)
        self.stop = StopSignal(say)
        self._agreed_stop = 0  # the signal that some rank was sent, once all know of it
        self._timed_tokens, self._timed_seconds = 0, 0.0

    # --- one step -----------------------------------------------------------------------------------------------------

    def train_step(self, step: int) -> tuple[float, int, float]:
        """One optimizer step. Returns the summed loss, the number of trained targets, and the gradient norm; a norm that is
        not finite is that of fp16's overflow, after which nothing was updated."""
        asked = time.perf_counter()
        self.ranks.at = step + 1
        batch = self._batch(step) if self._ahead is None else self._ahead.batch(step)
        self.watch.batch(time.perf_counter() - asked, batch.tokens.numel())
        scale = self._loss_scale()
        largest = batch.tokens.numel() if self.ranks.size == 1 else self.config.batch_tokens  # the same on all ranks
        factor = 1.0 if scale is None else scale.factor(largest)
        parts = list(self._micro_batches(step, self._parts(batch), factor))
        count = self._added(sum(part_count for _, part_count in parts))
        if count == 0:
            raise SproutError(f"step {step + 1}: no row of the batch trains a token; see `sprout data inspect`")
        # The one time in a step that a GPU is waited for: no update is made of gradients that are not finite.
        norm, loss_sum = self._norm_and_loss(*self._divide(count * factor), [loss for loss, _ in parts])
        if math.isfinite(loss_sum) and not math.isfinite(norm) and scale is not None and scale.overflowed():
            self._leave_out_update(step, scale)
            return loss_sum, count, norm
        if not (math.isfinite(norm) and math.isfinite(loss_sum)):
            finite = all(math.isfinite(float(loss)) for loss, _ in parts)
            raise SproutError(
                f"step {step + 1}: the loss or gradient is not finite (loss {loss_sum / count}, gradient norm {norm}); "
                f"{suspects(self.ranks, finite, batch.row_ids.tolist())}. The weights are those of step {step}. Lower optimizer.lr, or look at these rows."
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
            torch.manual_seed(stream_seed(self.seed, step, micro, self.ranks.rank))
            self.weights.begin(last=micro == len(parts) - 1)
            part_loss, part_count, metrics = objective(self.model, part.to(self.device))
            if part_count == 0 and not self.layout.exchanges:  # where it is, other ranks wait in the backward pass
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

    def _batch(self, step: int) -> Batch:
        """This rank's rows of a step."""
        return self.loader.batch(step, self.ranks.data_rank, self.ranks.data_size)

    def _parts(self, batch: Batch) -> list[Batch]:
        """Micro-batches of this rank: of its rows, its part of each. Where ranks exchange within a pass all have as many."""
        row_part = getattr(self.model, "row_part", (0, 1))
        parts = [part.row_part(*row_part) for part in batch.split(self.micro_rows)]
        if self.layout.exchanges:
            parts += [parts[0].without_targets()] * (self.ranks.most(len(parts)) - len(parts))
        return parts

    def _added(self, count: int) -> int:
        """Targets of the whole step. A signal that some rank was sent becomes known to all."""
        sent = self.stop.number
        total, terminate, interrupt = self.ranks.sum(count, sent == signal.SIGTERM, sent == signal.SIGINT)
        self._agreed_stop = signal.SIGTERM if terminate else signal.SIGINT if interrupt else 0
        return int(total)

    @property
    def _stop_signal(self) -> int | None:
        return (self.stop.number if self.ranks.size == 1 else self._agreed_stop) or None

    def _divide(self, count: float) -> tuple[list[str], list[Tensor]]:
        """Divide the gradients, summed over micro-batches and ranks, once, by the count of the whole window (times what they
        were scaled by, a power of two); return the norm of each by name, on the device."""
        self.layout.sum_gradients(self.weights.masters)
        named = self._clipped()
        grads = list(named.values())
        torch._foreach_div_(grads, float(count))
        return list(named), list(torch._foreach_norm(grads))

    def _norm_and_loss(self, names: list[str], norms: list[Tensor], losses: list[Tensor]) -> tuple[float, float]:
        """Norm of the whole gradient, and the summed loss of all ranks."""
        if self.ranks.size == 1:
            self.watch.gradients(names, norms)
            norm = torch.linalg.vector_norm(torch.stack(norms))
            read = torch.stack([norm.double(), *(loss.double() for loss in losses)]).tolist()
            return read[0], sum(read[1:])
        if self._due(self.config.log_every, self.state.step + 1):
            self.watch.gradients(names, self.layout.whole_norms(names, norms))
        loss = torch.stack([torch.zeros((), device=self.device), *losses]).double().sum()
        squares, loss_sum = self.ranks.sum_(torch.stack([self.layout.sum_of_squares(names, norms), loss])).tolist()
        return squares**0.5, loss_sum

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
        may_compile = compile_wanted(self.config.compile, self.device) and not self.layout.exchanges
        if self.state.step < self.total_steps and may_compile:
            self._compile()
        with self.stop.watched(), garbage_kept(self.ranks):
            while self.state.step < self.total_steps and not stopped_early:
                begin = time.perf_counter()
                loss_sum, count, norm = self.train_step(self.state.step)
                self.state.step += 1
                collect_together(self.ranks, self.state.step)
                if self.check_every and self.state.step % self.check_every == 0:
                    self._check_agreement()
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

    def _check_agreement(self) -> None:
        pieces = {**self.layout.pieces, **self.optimizers.pieces()}
        check_agreement(self.layout, {**self.weights.masters, **self.optimizers.tensors()}, pieces, self.state.step)

    def _compile(self) -> None:
        part = self._batch(self.state.step).split(self.micro_rows)[0]
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

    def _merge_window(self) -> None:
        """Add the ranks' sums of the objective's metrics; rank 0 has them from now on."""
        if self.ranks.size > 1:
            gathered, self.state.window_metrics = self.ranks.gathered(self.state.window_metrics), {}
            for found in gathered if self.ranks.first else []:
                self._add_metrics(found)

    def _log(self, norm: float, last: bool) -> float:
        state = self.state
        self._merge_window()
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
        if self.sampler is None or not self.ranks.first:
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
        self._merge_window()
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
            self.weights.load(checkpoint.model_tensors(self.layout.bounds(self.layout.pieces)))
            self.optimizers.load_tensors(checkpoint.optimizer_tensors(self.layout.bounds(self.optimizers.pieces())))
        except ValueError as error:  # a change was asked for that these tensors cannot follow
            raise CheckpointError(
                f"{checkpoint.path} does not fit what this recipe builds: {error}; begin in another folder (run=DIR)"
            ) from error
        self.state = TrainState.restored(checkpoint.state()["state"])
        if not self.ranks.first:
            self.state.window_metrics = {}  # rank 0 has the sums of all
        self.metrics.rewind(self.state.step)
        self.say(f"continuing from step {self.state.step} of {self.total_steps} ({checkpoint.path})")
        return self.state.step
