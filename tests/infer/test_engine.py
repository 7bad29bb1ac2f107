"""The engine: batched answers are those given alone, cached ones those without a cache, and ends are ends."""

from __future__ import annotations

import pytest
import torch
from tiny_model import random_model

from sproutlm.errors import SproutError
from sproutlm.infer.engine import Completion, Engine, PrefixCache, Request, forbidden_ids
from sproutlm.infer.sampling import SamplingParams
from sproutlm.model import Transformer
from sproutlm.tokenizer import Tokenizer

GREEDY = SamplingParams(temperature=0, max_tokens=12)


def prompts(tokenizer: Tokenizer) -> list[list[int]]:
    texts = ["Hello", "你好，世界！天地玄黄", "W", "What is 2 + 2? What is 2 + 2?", "日月盈昃", "😀"]
    return [[tokenizer.eos_id, *tokenizer.encode(text)] for text in texts]


def without_cache(model: Transformer, tokenizer: Tokenizer, prompt: list[int], length: int) -> list[int]:
    """The plainest greedy loop there is: the whole text again for each token."""
    never = sorted(forbidden_ids(tokenizer, model.config.vocab_size))
    ids = list(prompt)
    with torch.no_grad():
        for _ in range(length):
            logits = model(torch.tensor([ids]))[0, -1]
            logits[never] = -torch.inf
            ids.append(int(logits.argmax()))
    return ids[len(prompt) :]


def test_greedy_is_the_argmax_loop_without_a_cache(model: Transformer, tokenizer: Tokenizer) -> None:
    """pitfall 19: cached = uncached, with left padding, at the level of whole answers."""
    requests = [Request(prompt, GREEDY, ()) for prompt in prompts(tokenizer)]
    answers = Engine(model, tokenizer).generate(requests)
    for request, answer in zip(requests, answers, strict=True):
        assert answer.ids == without_cache(model, tokenizer, list(request.prompt_ids), 12)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_batched_answers_are_those_given_alone(model: Transformer, tokenizer: Tokenizer, temperature: float) -> None:
    """pitfall 19: batched = alone; with sampling, a request's luck is its own (seeded)."""
    requests = [
        Request(prompt, SamplingParams(temperature, top_p=0.95, max_tokens=3 + 4 * i, seed=i))
        for i, prompt in enumerate(prompts(tokenizer))
    ]
    together = Engine(model, tokenizer, batch_size=4).generate(requests)
    alone = [Engine(model, tokenizer).generate([request])[0] for request in requests]
    assert together == alone
    assert together != Engine(model, tokenizer).generate(list(reversed(requests)))  # the order is the requests'
    assert Engine(model, tokenizer).generate(list(reversed(requests))) == list(reversed(together))


def test_half_precision_answers_have_no_nan_under_left_padding(tokenizer: Tokenizer) -> None:
    """pitfall 19: bf16 with rows that are almost all padding."""
    model = random_model(tokenizer.vocab_size).bfloat16()
    answers = Engine(model, tokenizer).generate([Request(p, GREEDY, ()) for p in prompts(tokenizer)])
    assert all(len(answer.ids) == 12 for answer in answers)


def test_streamed_is_generated(model: Transformer, tokenizer: Tokenizer) -> None:
    engine = Engine(model, tokenizer)
    request = Request(prompts(tokenizer)[1], SamplingParams(temperature=1.0, max_tokens=20, seed=4))
    stream, ids = engine.stream(request), []
    while True:
        try:
            ids.append(next(stream))
        except StopIteration as end:
            completion: Completion = end.value
            break
    assert ids == completion.ids
    assert completion == engine.generate([request])[0]


def test_a_stop_token_ends_the_answer_and_is_no_part_of_it(model: Transformer, tokenizer: Tokenizer) -> None:
    prompt = prompts(tokenizer)[0]
    free = Engine(model, tokenizer).generate([Request(prompt, GREEDY, ())])[0]
    assert (free.finish_reason, free.stop_id) == ("length", None)
    stop = free.ids[5]
    first = free.ids.index(stop)
    answer = Engine(model, tokenizer).generate([Request(prompt, GREEDY, (stop,))])[0]
    assert (answer.ids, answer.finish_reason, answer.stop_id) == (free.ids[:first], "stop", stop)
    assert answer.text == tokenizer.decode(answer.ids).replace("\ufffd", "")
    assert list(Engine(model, tokenizer).stream(Request(prompt, GREEDY, (stop,)))) == answer.ids


def test_rows_that_are_done_leave_the_batch(model: Transformer, tokenizer: Tokenizer) -> None:
    """The batch shrinks once half of it is done; without that, one long answer would make all of them cost as much."""
    sizes: list[int] = []
    hook = model.register_forward_pre_hook(lambda module, arguments: sizes.append(len(arguments[0])))
    requests = [Request(p, SamplingParams(0, max_tokens=2 if i else 9), ()) for i, p in enumerate(prompts(tokenizer))]
    try:
        Engine(model, tokenizer).generate(requests)
    finally:
        hook.remove()
    assert sizes == [6, 6, 1, 1, 1, 1, 1, 1, 1]


def test_progress_adds_up(model: Transformer, tokenizer: Tokenizer) -> None:
    told: list[int] = []
    requests = [Request(p, SamplingParams(0, max_tokens=1 + i)) for i, p in enumerate(prompts(tokenizer))]
    Engine(model, tokenizer, batch_size=4).generate(requests, on_finished=told.append)
    assert sum(told) == len(requests) and len(told) > 1


def test_padding_unknown_reserved_and_turn_starts_are_never_written(model: Transformer, tokenizer: Tokenizer) -> None:
    never = forbidden_ids(tokenizer, tokenizer.vocab_size + 3)
    assert {tokenizer.pad_id, tokenizer.unk_id, tokenizer.token_id("<|im_start|>"), tokenizer.vocab_size + 2} <= never
    assert tokenizer.token_id("<|reserved_0|>") in never
    assert not never & set(tokenizer.stop_ids)
    hot = SamplingParams(temperature=100.0, max_tokens=90, seed=1)
    ids = [i for p in prompts(tokenizer) for i in Engine(model, tokenizer).generate([Request(p[:3], hot, ())])[0].ids]
    assert not never & set(ids) and len(ids) > 400


def test_a_stop_id_of_the_request_can_be_drawn_though_it_is_otherwise_forbidden(
    model: Transformer, tokenizer: Tokenizer
) -> None:
    hot = SamplingParams(temperature=1e6, max_tokens=90, seed=1)
    requests = [Request(prompts(tokenizer)[0], hot, tuple(range(30))), Request(prompts(tokenizer)[1], hot, ())]
    answers = Engine(model, tokenizer).generate(requests)
    assert answers[0].finish_reason == "stop" and answers[1].finish_reason == "length"


def test_repetition_penalty_reads_prompt_and_answer_but_not_padding(model: Transformer, tokenizer: Tokenizer) -> None:
    """pitfall 41, through the engine: an enormous penalty never writes a token twice, and alone = batched, also for
    the rows that stay when others are done."""
    requests = [
        Request(prompt, SamplingParams(temperature=0, repetition_penalty=1e9, max_tokens=10 + 5 * i), ())
        for i, prompt in enumerate(prompts(tokenizer))
    ]
    for request, answer in zip(requests, Engine(model, tokenizer).generate(requests), strict=True):
        assert len(set(answer.ids)) == request.params.max_tokens and not set(answer.ids) & set(request.prompt_ids)
        assert answer == Engine(model, tokenizer).generate([request])[0]


def test_an_answer_ends_where_the_context_ends(model: Transformer, tokenizer: Tokenizer) -> None:
    prompt = [tokenizer.eos_id] * 90
    answer = Engine(model, tokenizer).generate([Request(prompt, SamplingParams(0, max_tokens=50), ())])[0]
    assert (len(answer.ids), answer.finish_reason) == (6, "length")


def test_a_finished_row_does_not_run_past_a_table_of_learned_positions(tokenizer: Tokenizer) -> None:
    """One of three is done at once and stays in the batch, while the others write to the end of the context."""
    model = random_model(tokenizer.vocab_size, family="gpt2", max_seq_len=24, n_kv_heads=4)
    requests = [Request([5, 6, 7] * 8, SamplingParams(0, max_tokens=50), ()) for _ in range(3)]
    requests = [Request(r.prompt_ids[:n], r.params, ()) for r, n in zip(requests, (1, 2, 23), strict=True)]
    answers = Engine(model, tokenizer).generate(requests)
    assert [(len(a.ids), a.finish_reason) for a in answers] == [(23, "length"), (22, "length"), (1, "length")]
    assert answers == [Engine(model, tokenizer).generate([request])[0] for request in requests]


@pytest.mark.parametrize(
    ("prompt", "sentence"),
    [([], "no tokens"), ([1] * 96, "96 tokens and the model's context holds 96"), ([1, 99999], "holds id 99999"),
     ([1, -1], "knows ids 0 to")],
)  # fmt: skip
def test_prompts_that_cannot_be_run_are_sentences(
    model: Transformer, tokenizer: Tokenizer, prompt: list[int], sentence: str
) -> None:
    with pytest.raises(SproutError, match=sentence):
        Engine(model, tokenizer).generate([Request(prompt, GREEDY)])


def test_an_answer_cut_inside_a_character_loses_that_character(model: Transformer, tokenizer: Tokenizer) -> None:
    """pitfall 10: text never ends in U+FFFD because the tokens ran out."""
    emoji = tokenizer.encode("🦔")
    assert len(emoji) > 1
    from sproutlm.infer.engine import _Row

    row = _Row(Request([1], GREEDY), frozenset(), 12, torch.Generator(), ids=[*tokenizer.encode("你"), *emoji[:-1]])
    assert row.completion(tokenizer).text == "你"


def test_bytes_that_are_no_characters_are_never_shown(model: Transformer, tokenizer: Tokenizer) -> None:
    """pitfall 10: a random model writes many such bytes; the pieces shown are those of the completion's text."""
    engine = Engine(model, tokenizer)
    request = Request(prompts(tokenizer)[0], SamplingParams(temperature=2.0, max_tokens=80, seed=1), ())
    pieces, stream = [], engine.stream_text(request)
    while True:
        try:
            pieces.append(next(stream))
        except StopIteration as end:
            completion: Completion = end.value
            break
    assert "\ufffd" in tokenizer.decode(completion.ids)  # the model did write them
    assert "".join(pieces) == completion.text and "\ufffd" not in completion.text and all(pieces)


def test_a_model_in_training_is_left_in_training(tokenizer: Tokenizer) -> None:
    """Dropout is off while it answers; mode, random stream and inference mode are as before, also between two tokens."""
    model = random_model(tokenizer.vocab_size, dropout=0.5)
    quiet = Engine(model, tokenizer).generate([Request(prompts(tokenizer)[0], GREEDY, ())])
    model.train()
    state = torch.get_rng_state()
    assert Engine(model, tokenizer).generate([Request(prompts(tokenizer)[0], GREEDY, ())]) == quiet
    stream = Engine(model, tokenizer).stream(Request(prompts(tokenizer)[0], GREEDY, ()))
    next(stream)
    assert model.training and not torch.is_inference_mode_enabled()
    assert torch.equal(state, torch.get_rng_state())
    model(torch.tensor([[1, 2]])).sum().backward()


def test_turns_that_share_a_prefix_give_the_answers_of_a_fresh_cache(model: Transformer, tokenizer: Tokenizer) -> None:
    """pitfall 19: what a new prompt shares with the last one is not run again, and the answer is the same."""
    engine, prefix = Engine(model, tokenizer), PrefixCache()
    first, other = prompts(tokenizer)[1], prompts(tokenizer)[3]
    second = [*first, *([5] * 20), 7]
    run: list[int] = []
    for prompt in (first, second, second, other):
        request = Request(prompt, GREEDY, ())
        lengths: list[int] = []
        hook = model.register_forward_pre_hook(
            lambda module, arguments, seen=lengths: seen.append(arguments[0].shape[1])
        )
        streamed = list(engine.stream(request, prefix))
        hook.remove()
        run.append(lengths[0])
        assert streamed == engine.generate([request])[0].ids
    # The last token always runs; two texts share the token that begins them.
    assert run == [len(first), len(second) - len(first), 1, len(other) - 1]


def test_greedy_ids_equal_those_of_transformers(model: Transformer, tokenizer: Tokenizer, model_folder: object) -> None:
    """Parity with transformers 5.x ``generate`` on the exported model, with and without a repetition penalty."""
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    for penalty in (1.0, 1.3):
        for prompt in prompts(tokenizer)[:3]:
            params = SamplingParams(temperature=0, repetition_penalty=penalty, max_tokens=16)
            ours = Engine(model, tokenizer).generate([Request(prompt, params, ())])[0].ids
            ids = theirs.generate(
                torch.tensor([prompt]),
                attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
                do_sample=False,
                repetition_penalty=penalty,
                max_new_tokens=16,
                eos_token_id=None,
                pad_token_id=tokenizer.pad_id,
                suppress_tokens=sorted(forbidden_ids(tokenizer, model.config.vocab_size)),
            )
            assert ours == ids[0, len(prompt) :].tolist()
