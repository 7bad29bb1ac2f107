"""Near duplicates are found as often as theory says, and which of them stays depends on nothing but the input's order."""

from __future__ import annotations

import random

import numpy as np
import pytest

from .conftest import han, near


def keys(texts, **settings):
    from sproutlm.config.clean import MinhashStep
    from sproutlm.data.clean.minhash import band_keys

    return band_keys(texts, MinhashStep(**settings))[0]


def removed(texts, **settings):
    from sproutlm.config.clean import MinhashStep
    from sproutlm.data.clean.duplicates import near_duplicates

    return near_duplicates(texts, MinhashStep(**settings))


@pytest.mark.parametrize(("bands", "rows"), [(14, 8), (20, 5), (1, 1)])
@pytest.mark.parametrize("similarity", [0.4, 0.6, 0.72, 0.8, 0.9])
def test_recall_at_a_known_overlap_is_within_five_points_of_theory(similarity, bands, rows):
    from sproutlm.config.clean import MinhashStep
    from sproutlm.data.clean.minhash import expected_recall, jaccard

    rng, step = random.Random(7), MinhashStep(bands=bands, rows=rows)
    originals = [han(rng, 120) for _ in range(800)]
    copies = [near(text, similarity, rng) for text in originals]
    measured = np.mean([jaccard(*pair, step) for pair in zip(originals[:50], copies[:50], strict=True)])
    assert abs(measured - similarity) < 0.02  # the copies are what they are made to be
    ours = keys([*originals, *copies], bands=bands, rows=rows)
    found = (ours[:, :800] == ours[:, 800:]).any(axis=0).mean()
    assert abs(found - expected_recall(similarity, step)) < 0.05
    if rows > 1:  # a single hash says nothing of how alike two documents are
        gone = removed([*originals, *copies], bands=bands, rows=rows)
        assert gone == {copy: copy - 800 for copy in gone}  # no original, and each for its own
        assert abs(len(gone) / 800 - expected_recall(similarity, step)) < 0.05


def test_documents_without_a_common_run_are_never_duplicates():
    rng = random.Random(1)
    assert not removed([han(rng, 60) for _ in range(3000)])


def test_the_first_of_near_duplicates_stays_and_is_named():
    rng = random.Random(2)
    texts = [han(rng, 300) for _ in range(4)]
    texts = [*texts, near(texts[2], 0.98, rng), near(texts[2], 0.98, rng), texts[0] + "。"]
    assert removed(texts) == {4: 2, 5: 2, 6: 0}


def test_a_document_like_a_removed_one_alone_stays():
    """Connected components would take the third, too, and nothing like it would be left."""
    from sproutlm.data.clean.duplicates import Groups, choose

    first_two = Groups(np.array([0, 1]), np.array([0, 0]))
    last_two = Groups(np.array([1, 2]), np.array([0, 0]))
    assert choose(None, [first_two, last_two]) == ({}, {1: 0})


def test_hardly_alike_documents_of_one_form_all_stay():
    """Equations of one form (similarity 0.2 to 0.3): by bands alone some of the 500,000 pairs would be taken for equal."""
    from sproutlm.data.clean.duplicates import choose, groups_of

    rng = random.Random(6)
    texts = []
    for _ in range(1000):
        a, b, c = (rng.randrange(100, 10000) for _ in range(3))
        texts.append(
            f"Solve {a} x plus {b} equals {c} for the unknown x and write down every step. "
            f"Step one take {b} from both sides so that {a} x equals {c - b} and nothing else is left there. "
            f"Step two divide both sides by {a} and find that x is about {(c - b) / a:.3f} when rounded."
        )
    by_bands = choose(None, [groups_of(band) for band in keys(texts, rows=5)])[1]
    assert len(by_bands) > 5
    assert not removed(texts, rows=5, min_similarity=0.6)
    assert len(removed(texts, rows=5)) < len(by_bands)


def test_an_exact_duplicate_of_a_near_duplicate_names_what_stays():
    from sproutlm.data.clean.duplicates import Groups, choose

    exact = Groups(np.array([1, 2]), np.array([0, 0]))
    assert choose(exact, [Groups(np.array([0, 1, 2]), np.array([0, 0, 0]))]) == ({2: 0}, {1: 0})


@pytest.mark.parametrize("text", ["春", "two words", "1 + 1 = 2"])
def test_documents_under_five_words_are_deduplicated(text):
    assert removed([text, "another one", text.upper()]) == {2: 0}


def test_documents_without_words_are_like_no_other():
    assert not removed(["", "。。。", "!!!", ""])


def test_equations_are_not_merged_by_their_numbers():
    texts = [f"Solve {a}x + {b} = {a * 7 + b}. Divide both sides by {a} to get x = 7." for a, b in [(2, 3), (5, 9)]]
    assert not removed([*texts, texts[0].replace("+", "-")], bands=1, rows=4)
    assert removed(texts, numbers="merge") == {1: 0}


def test_punctuation_width_and_case_do_not_hide_a_duplicate():
    assert removed(["Ｈｅｌｌｏ，世界！这是一个例子。", "hello 世界：这是一个例子"]) == {1: 0}


def test_keys_do_not_depend_on_what_else_is_hashed_with_them():
    rng = random.Random(3)
    texts = [han(rng, rng.randrange(0, 400)) for _ in range(300)] + ["an English text of several words"]
    alone = np.concatenate([keys([text]) for text in texts], axis=1)
    assert np.array_equal(keys(texts), alone)


def test_groups_found_in_passes_are_the_same_groups():
    from sproutlm.data.clean.duplicates import groups_in_passes, groups_of

    rng = np.random.default_rng(4)
    values = rng.integers(0, 1 << 64, 400, np.uint64)[rng.integers(0, 400, 1000)]
    values[:5] = 0
    whole, parted = groups_of(values), groups_in_passes([values[:300], values[300:301], values[301:]], None, 100)

    def as_sets(groups):
        return {frozenset(groups.document[groups.group == one].tolist()) for one in np.unique(groups.group)}

    assert len(as_sets(whole)) > 100
    assert as_sets(parted) == as_sets(whole)


def test_short_runs_of_english_words_are_units():
    from sproutlm.data.clean.units import ngrams_of, units_of

    units, starts = units_of(["to be or not to be", "春眠 不觉晓", ""])
    assert np.diff(starts).tolist() == [6, 5, 0]
    assert units[0] == units[4] and units[1] == units[5] and len(set(units[:6].tolist())) == 4
    grams, bounds = ngrams_of(units, starts, 2)
    assert np.diff(bounds).tolist() == [5, 4, 0]
    assert grams[0] == grams[4] and len(set(grams.tolist())) == 8
