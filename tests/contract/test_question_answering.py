"""Question answering: the span loss by hand, positions that are no token, answers by a stranger's hand, Trainer."""

import pytest
import torch
from transformers import AutoModelForQuestionAnswering, AutoTokenizer, DataCollatorWithPadding, set_seed

from head_checks import one_each, pair_tokenizer, train_two_steps
from hf_seqmodels.models import ARCHITECTURES
from model_table import (
    PAIRS,
    SIZES,
    Case,
    assert_close,
    assert_same_gradients,
    build,
    each_pair,
    make_ids,
    make_mask,
    named_gradients,
)

ROW = "losses of heads"
HEAD = "question-answering"
ANSWERING = [(case, head) for case, head in PAIRS if head == HEAD]
each_answering = each_pair(ANSWERING)
each_architecture = one_each(ANSWERING)
# (B, T) = (5, 8) of the padding "mixed": rows of all, the last 5, the first 4, the tokens 1, 2, 4 and 7, and token 3.
STARTS, ENDS = torch.tensor([2, 3, 0, 1, 3]), torch.tensor([5, 7, 3, 7, 3])


def make_batch() -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    mask = make_mask("mixed")
    return {"input_ids": make_ids(*mask.shape)}, mask


def by_hand(scores: torch.Tensor, mask: torch.Tensor, positions: list[int]) -> torch.Tensor:
    """Mean −log p of the positions among each row's tokens, over the rows where it is one of them."""
    losses = []
    for row, tokens, position in zip(scores, mask.bool(), positions, strict=True):
        if 0 <= position < len(tokens) and tokens[position]:
            losses.append(row[tokens].exp().sum().log() - row[position])
    return torch.stack(losses).mean()


@each_answering
@pytest.mark.parametrize(
    ("starts", "ends"),
    [
        (STARTS.tolist(), ENDS.tolist()),
        ([-1, 3, 8, 1, 3], [5, 13, 3, 10**6, 3]),  # outside the 8 tokens
        ([-100, 0, 7, 0, 3], [5, 7, 4, 3, 0]),  # no answer; under the padding
    ],
    ids=["inside", "outside", "under-padding"],
)
def test_loss_by_hand(case, head, starts, ends):
    model, (batch, mask) = build(case, head, torch.float64), make_batch()
    answers = {"start_positions": torch.tensor(starts), "end_positions": torch.tensor(ends)}
    loss = model(**batch, attention_mask=mask, **answers).loss
    loss.backward()
    gradients = named_gradients(model)
    hidden = model.model(**batch, attention_mask=mask).last_hidden_state
    scores = hidden @ model.qa_outputs.weight.T + model.qa_outputs.bias
    expected = (by_hand(scores[..., 0], mask, starts) + by_hand(scores[..., 1], mask, ends)) / 2
    expected.backward()
    assert_close(loss, expected, 1e-12, ROW)
    assert_same_gradients(gradients, named_gradients(model), 1e-12, ROW)
    column = {name: value[:, None] for name, value in answers.items()}
    assert torch.equal(model(**batch, attention_mask=mask, **column).loss, loss), "(B, 1) as (B,)"


@each_answering
def test_loss_row_by_row(case, head):
    """Positions speak of the padded row; alone, each is counted among the row's own tokens."""
    model, (batch, mask) = build(case, head, torch.float64), make_batch()
    count = mask.cumsum(1) - 1
    loss = model(**batch, attention_mask=mask, start_positions=STARTS, end_positions=ENDS).loss
    loss.backward()
    gradients, total = named_gradients(model), 0.0
    for i in range(len(mask)):
        ids = batch["input_ids"][i][mask[i].bool()][None]
        answer = {"start_positions": count[i, STARTS[i]][None], "end_positions": count[i, ENDS[i]][None]}
        alone = model(ids, **answer).loss / len(mask)
        alone.backward()
        total = total + alone.detach()
    assert_close(loss, total, 1e-12, ROW)
    assert_same_gradients(gradients, named_gradients(model), 1e-12, ROW)


@each_architecture
def test_no_answer_in_the_batch(case, head):
    """The mean over nothing is 0, not 0/0, and moves nothing."""
    model, (batch, mask) = build(case, head), make_batch()
    nowhere = torch.full((5,), -100)
    outputs = model(**batch, attention_mask=mask, start_positions=nowhere, end_positions=nowhere)
    assert outputs.loss == 0
    outputs.loss.backward()
    assert all(not gradient.any() for gradient in named_gradients(model).values())


@each_answering
def test_padding_is_never_chosen(case, head):
    """However the padding's own score would be: the bias of the output layer alone makes it the best."""
    model, (batch, mask) = build(case, head), make_batch()
    with torch.no_grad():  # tokens score low, what is zero scores the bias
        model.qa_outputs.weight.copy_(-model.model(**batch).last_hidden_state.mean((0, 1)).expand(2, -1))
        model.qa_outputs.bias.fill_(50.0)
    outputs = model(**batch, attention_mask=mask)
    for scores in (outputs.start_logits, outputs.end_logits):
        assert scores.shape == mask.shape
        assert mask.gather(1, scores.argmax(-1, keepdim=True)).all()
        assert torch.isfinite(scores).all()
        assert not scores.softmax(-1)[~mask.bool()].any()


@each_architecture
def test_half_an_answer_is_refused(case, head):
    model, (batch, _) = build(case, head), make_batch()
    for given in ({"start_positions": STARTS}, {"end_positions": ENDS}):
        with pytest.raises(ValueError, match="an answer has two ends: pass both start_positions and end_positions"):
            model(**batch, **given)


# -- with transformers ------------------------------------------------------------------------------------------------
@each_architecture
def test_stock_trainer(case, head, tmp_path):
    """It finds the labels by their names; predictions are the two rows of scores and nothing else."""
    tokenizer, rows = pair_tokenizer(), []
    for index in range(8):
        text = " ".join(f"w{3 + (index + place) % 19}" for place in range(3 + index % 4))
        rows.append({**tokenizer("w3 w4", text), "start_positions": 3, "end_positions": 3 + index % 3})
    collator = DataCollatorWithPadding(tokenizer, padding="max_length", max_length=10)
    metrics, seen = train_two_steps(build(case, head, pad_token_id=0), rows, collator, tmp_path)
    assert [part.shape for part in seen.predictions] == [(8, 10), (8, 10)]
    assert [part.tolist() for part in seen.label_ids] == [[3] * 8, [3 + index % 3 for index in range(8)]]
    mask = torch.tensor([[1] * len(row["input_ids"]) + [0] * (10 - len(row["input_ids"])) for row in rows])
    losses = [
        by_hand(torch.tensor(scores).double(), mask, answers.tolist())
        for scores, answers in zip(seen.predictions, seen.label_ids, strict=True)
    ]
    assert metrics["eval_loss"] == pytest.approx(float(sum(losses)) / 2, rel=1e-4)


def make_questions(rows: int, seed: int) -> tuple[list[str], list[str], list[str]]:
    """Texts of 5 to 9 words in which one of the two marks w3, w4 stands before an answer; the question names it."""
    generator = torch.Generator().manual_seed(seed)

    def draw(low: int, high: int, count: int = 1) -> list[int]:
        return torch.randint(low, high, (count,), generator=generator).tolist()

    questions, texts, answers = [], [], []
    for _ in range(rows):
        words = draw(5, SIZES["vocab_size"], draw(5, 10)[0])
        place, mark = draw(0, len(words) - 2)[0], draw(3, 5)[0]
        words[place] = mark
        questions.append(f"w{mark}")
        texts.append(" ".join(f"w{word}" for word in words))
        answers.append(f"w{words[place + 1]} w{words[place + 2]}")
    return questions, texts, answers


def answer_by_hand(model, tokenizer, question: str, text: str) -> str:
    """The best span of the text, as anybody would read it off the scores (transformers 5 has no pipeline for it)."""
    inputs = tokenizer(question, text, return_tensors="pt")
    with torch.no_grad():
        outputs = model(**inputs)
    length = inputs["input_ids"].shape[1]
    in_text = (inputs["token_type_ids"][0] == 1) & (inputs["input_ids"][0] != tokenizer.sep_token_id)
    spans = [
        (outputs.start_logits[0, i] + outputs.end_logits[0, j], i, j)
        for i in range(length)
        for j in range(i, min(i + 3, length))
        if in_text[i] and in_text[j]
    ]
    _, first, last = max(spans)
    return tokenizer.decode(inputs["input_ids"][0, first : last + 1])


@pytest.mark.parametrize(
    "case",
    [Case("seq_gru", "bidirectional"), Case("seq_transformer_decoder", "rotary")],
    ids=str,
)
def test_finds_the_marked_words(case, tmp_path):
    """It learns, and what was saved and loaded by the Auto classes answers questions."""
    set_seed(0)
    options = SIZES | {"hidden_size": 24, "pad_token_id": 0} | case.options
    architecture = ARCHITECTURES[case.architecture]
    model, tokenizer = architecture.models[HEAD](architecture.config(**options)), pair_tokenizer()
    questions, texts, _ = make_questions(512, seed=1)
    inputs = tokenizer(questions, texts, padding=True, return_tensors="pt")
    mark = inputs["input_ids"][:, :1]
    starts = ((inputs["input_ids"] == mark) & (inputs["token_type_ids"] == 1)).int().argmax(-1) + 1
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for step in range(60):
        rows = torch.arange(step * 64, step * 64 + 64) % len(starts)
        batch = {name: value[rows] for name, value in inputs.items()}
        loss = model(**batch, start_positions=starts[rows], end_positions=starts[rows] + 1).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    model = AutoModelForQuestionAnswering.from_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    unseen = list(zip(*make_questions(40, seed=2), strict=True))
    right = sum(answer_by_hand(model, tokenizer, question, text) == answer for question, text, answer in unseen)
    assert right >= 36, f"{right} of {len(unseen)} answers are right"
