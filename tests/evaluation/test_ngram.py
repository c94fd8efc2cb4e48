import math
from collections import Counter, defaultdict

import numpy as np
import pytest

from hf_seqmodels.data import build_character_tokenizer, load_pydoc_topics, token_stream
from hf_seqmodels.evaluation.ngram import InterpolatedNGram


@pytest.fixture(scope="module")
def pydoc():
    corpus = load_pydoc_topics()
    tokenizer = build_character_tokenizer(corpus["train"]["text"])
    return len(tokenizer), {name: token_stream(split, tokenizer) for name, split in corpus.items()}


def naive_probability(train, vocab_size, order, context, token):
    """The textbook recursion with dictionaries: the slow twin."""
    if order == 0:
        return 1 / vocab_size
    return _naive_level(train, vocab_size, order, order, context, token)


def _naive_level(train, vocab_size, top, length, context, token):
    if length == 0:
        return 1 / vocab_size
    shorter = _naive_level(train, vocab_size, top, length - 1, context, token)
    if length - 1 > len(context):
        return shorter
    if length == top:
        counts = Counter(tuple(train[i : i + length]) for i in range(len(train) - length + 1))
    else:
        counts = Counter(gram[1:] for gram in {tuple(train[i : i + length + 1]) for i in range(len(train) - length)})
    n = Counter(counts.values())
    discounts = {}
    for i in (1, 2, 3):
        discounts[i] = 0.75
        if n[1] and n[i]:
            estimate = i - (i + 1) * n[1] / (n[1] + 2 * n[2]) * n[i + 1] / n[i]
            discounts[i] = estimate if 0 < estimate < i else 0.75
    followers = defaultdict(dict)
    for gram, count in counts.items():
        followers[gram[:-1]][gram[-1]] = count
    seen = followers.get(tuple(context[len(context) - (length - 1) :]), {})
    if not seen:
        return shorter
    taken = sum(discounts[min(count, 3)] for count in seen.values())
    kept = seen[token] - discounts[min(seen[token], 3)] if token in seen else 0
    return (kept + taken * shorter) / sum(seen.values())


@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_equals_the_textbook_recursion(order):
    rng = np.random.default_rng(0)
    vocab_size = 6
    train, test = (rng.choice(vocab_size, size=n, p=[0.4, 0.3, 0.15, 0.1, 0.05, 0]).tolist() for n in (150, 12))
    test[5] = 5  # never seen in training
    model = InterpolatedNGram(order, vocab_size).fit(train)
    for end in range(len(test)):
        expected = [naive_probability(train, vocab_size, order, test[:end], token) for token in range(vocab_size)]
        np.testing.assert_allclose(model.next_token_probabilities(test[:end]), expected, rtol=1e-12)


@pytest.mark.parametrize("order", [1, 3, 5])
def test_probabilities_sum_to_one_and_none_is_zero(pydoc, order):
    vocab_size, streams = pydoc
    model = InterpolatedNGram(order, vocab_size).fit(streams["train"])
    rng = np.random.default_rng(order)
    contexts = [streams["test"][: int(end)] for end in rng.integers(0, len(streams["test"]), 20)]
    contexts += [rng.integers(0, vocab_size, 6) for _ in range(20)] + [streams["test"][:n] for n in range(3)]
    for context in contexts:
        probabilities = model.next_token_probabilities(context)
        assert probabilities.shape == (vocab_size,)
        assert probabilities.min() > 0
        assert probabilities.sum() == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("order", [1, 2, 4])
def test_bits_score_every_token_after_the_first_once(order):
    rng = np.random.default_rng(1)
    train, test = rng.integers(0, 5, 300), rng.integers(0, 5, 40)
    model = InterpolatedNGram(order, 5).fit(train)
    bits = [-math.log2(model.next_token_probabilities(test[:t])[test[t]]) for t in range(1, len(test))]
    assert model.bits_per_token(test) == pytest.approx(sum(bits) / (len(test) - 1), rel=1e-12)


def test_known_entropies():
    coin = np.random.default_rng(2).integers(0, 2, 20_000)
    assert InterpolatedNGram(1, 2).fit(coin).bits_per_token(coin) == pytest.approx(1, abs=1e-3)
    assert InterpolatedNGram(3, 2).fit(coin[:10_000]).bits_per_token(coin[10_000:]) == pytest.approx(1, abs=1e-2)
    cycle = np.tile([0, 1, 2, 3], 2000)
    assert InterpolatedNGram(1, 4).fit(cycle).bits_per_token(cycle) == pytest.approx(2, abs=1e-3)
    assert InterpolatedNGram(2, 4).fit(cycle).bits_per_token(cycle) < 0.01


def test_real_text_gets_better_with_order(pydoc):
    vocab_size, streams = pydoc
    bits = [
        InterpolatedNGram(n, vocab_size).fit(streams["train"]).bits_per_token(streams["test"]) for n in (1, 2, 3, 5)
    ]
    assert bits == sorted(bits, reverse=True)
    # Python 3.11.7: 4.674, 3.310, 2.431, 1.730; other versions carry other text
    assert bits == pytest.approx([4.67, 3.31, 2.43, 1.73], rel=0.15)


def test_large_vocabularies_do_not_overflow():
    stream = np.tile(np.arange(0, 2_000_000, 100_000), 30)
    assert InterpolatedNGram(5, 2_000_000).fit(stream).bits_per_token(stream) < 0.5


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: InterpolatedNGram(0, 5), ValueError, "order=0 "),
        (lambda: InterpolatedNGram(3, 0), ValueError, "vocab_size=0 "),
        (lambda: InterpolatedNGram(3, 5).fit([1, 2, 3]), ValueError, r"\(3,\) .* T ≥ 4"),
        (lambda: InterpolatedNGram(1, 5).fit([1, 2, 5]), ValueError, "token id 5 .* 0 to 4"),
        (lambda: InterpolatedNGram(1, 5).fit([1, 2, 3]).bits_per_token([1]), ValueError, r"\(1,\) .* T ≥ 2"),
        (lambda: InterpolatedNGram(1, 5).bits_per_token([1, 2]), RuntimeError, "call fit first"),
    ],
)
def test_bad_input_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()
