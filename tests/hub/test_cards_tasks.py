"""Every task, every head and models of transformers have a card whose snippet runs in a fresh process."""

import pytest
from card_snippets import run_snippets, snippet_of
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel, LlamaConfig

from hf_seqmodels.config import auto_class, parse
from hf_seqmodels.data import build_character_tokenizer, make_synthetic
from hf_seqmodels.hub.card import build_card, check_card, write_plots
from hf_seqmodels.hub.card_sections import limits
from hf_seqmodels.hub.card_usage import PIPELINE_TAGS, auto_name, fit, head_of
from hf_seqmodels.loading import load_data
from hf_seqmodels.run import run
from hf_seqmodels.tasks import TASKS
from model_table import Case, build

QUICK = "--max_steps 1 --per_device_train_batch_size 2 --eval_strategy no --save_strategy no --use_cpu true"
QUICK += " --load_best_model_at_end false --report_to none --num_examples 20 --hidden_size 8"
# Recipe → options that make it small, and the pictures that apply.
RUNS = {
    "next_token/attention_rnn": ("", ["attention_map", "gradient_flow"]),
    "cloze/transformer_encoder": ("--intermediate_size 8 --num_attention_heads 2", ["attention_map"]),
    "reverse/attention_rnn_seq2seq-dot": ("", ["attention_map"]),
    "parity/rnn": ("", ["gradient_flow"]),
    "lookahead_tags/lstm": ("", ["gradient_flow"]),
    "moving_squares/conv_lstm": ("", []),
    "adding/gru": ("--length 20", []),
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A real run of one step for each recipe, of all tasks: name → (folder, record, model, tokenizer)."""
    found = {}
    for recipe, (options, _) in RUNS.items():
        folder = tmp_path_factory.mktemp("runs") / recipe.replace("/", "-")
        config = parse(["--config", recipe, "--output_dir", str(folder), *QUICK.split(), *options.split()])
        data = load_data(config)
        record = run(config, data, quiet=True)
        found[recipe] = folder, record, auto_class(config.run.task).from_pretrained(folder), data.tokenizer
    assert {record["task"] for _, record, _, _ in found.values()} == set(TASKS)
    return found


@pytest.mark.parametrize("recipe", RUNS)
def test_every_task_has_a_card_and_the_pictures_that_apply(runs, recipe):
    folder, record, model, tokenizer = runs[recipe]
    pictures = write_plots(folder, record, model, tokenizer)
    assert pictures == ["loss_curve.png", *(f"{name}.png" for name in RUNS[recipe][1])]
    assert all((folder / name).stat().st_size <= 25_000 for name in pictures)
    card = build_card(recipe, record, model, plots=pictures, has_tokenizer=tokenizer is not None)
    assert check_card(card.content) == [] and not model.training
    assert card.data.pipeline_tag == PIPELINE_TAGS[record["task"]]
    shown = {(result.dataset_split, result.metric_type) for result in card.data.eval_results}
    assert shown and shown == {
        (split, name) for split, found in record["metrics"].items() for name in found if name not in ("loss", "tokens")
    }
    name, score = next(iter(record["chance"].items()))
    assert f"a guess ({'mean squared error' if name == 'mse' else name.replace('_', ' ')})" in card.text, score
    assert "a task made in code; the scores say nothing about real data" in card.text
    assert ("trained to name a number on adding" in card.text) == (recipe == "adding/gru")
    longest = max(record["data"]["longest"].values())
    assert f"{longest:,} in test" in card.text
    if tokenizer is not None:
        assert repr(record["data"]["example"])[1:-1] in snippet_of(card.text)


def features_model(head):
    return build(Case("seq_gru", "plain"), head)


@pytest.fixture(scope="module")
def saved(tmp_path_factory, runs):
    """Heads that no run trains, models of transformers, and folders without code or tokenizer: (folder, card)."""
    cards = {"code": [], "no code": []}

    def add(name, model, code, tokenizer=None, **options):
        folder = tmp_path_factory.mktemp("saved")
        model.save_pretrained(folder, **({} if code is None else {"save_code": code}))
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
        card = build_card(name, None, model, has_code=bool(code), has_tokenizer=tokenizer is not None, **options)
        assert check_card(card.content) == []
        cards["code" if code is not False else "no code"].append((folder, card.text))

    _, words = make_synthetic("cloze", 20)
    for code in (True, False):
        for head in ("ctc", "audio-classification", "time-series-prediction"):
            add(head, features_model(head), code)
        for head in ("backbone", "causal-lm", "token-classification"):
            add(head, build(Case("seq_lstm", "plain"), head), code)
        add("qa", build(Case("seq_transformer_encoder", "plain"), "question-answering"), code, words)
        add("crf", build(Case("seq_lstm", "plain"), "token-classification", crf=True), code, words)
        add("fill", build(Case("seq_transformer_encoder", "plain"), "masked-lm"), code, words)
        add("translate", build(Case("seq_transformer", "plain"), "seq2seq-lm"), code, words)
        add("no tokenizer", build(Case("seq_transformer", "plain"), "seq2seq-lm"), code)
        add("film", build(Case("seq_conv_lstm", "plain"), "time-series-prediction"), code)
        add("known", build(Case("seq_lstm", "plain"), "time-series-prediction", num_time_features=2), code)
    letters = build_character_tokenizer(["abcdefghijklmnopqr é"])
    for head, case in (("causal-lm", "transformer_decoder"), ("seq2seq-lm", "transformer")):
        few = {"positions": "learned", "max_position_embeddings": 20, "eos_token_id": None}
        for prompt in ("ab cd", "a" * 14, "é" * 90):
            add(f"few {len(prompt)}", build(Case(f"seq_{case}", "plain"), head, **few), True, letters, prompt=prompt)
    size = {"n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 128, "vocab_size": len(words)}
    gpt2 = GPT2LMHeadModel(GPT2Config(**size, bos_token_id=2, eos_token_id=2, pad_token_id=0))
    short = GPT2LMHeadModel(GPT2Config(**size | {"n_positions": 20, "vocab_size": len(letters)}, eos_token_id=None))
    add("short", short, None, letters, prompt="ab c" * 20)
    add("gpt2", gpt2, None, words, prompt="a b")
    return cards


def test_snippets_run_for_a_stranger_without_the_package(runs, saved):
    cards = [
        (folder, build_card("x", record, model, has_tokenizer=tokenizer is not None).text)
        for folder, record, model, tokenizer in runs.values()
    ]
    cards += saved["code"]
    outputs = run_snippets(cards, package=False)
    assert len(outputs) == len(RUNS) + 21 and all(output.strip() for output in outputs)
    by_recipe = dict(zip(RUNS, outputs, strict=False))
    example = runs["next_token/attention_rnn"][1]["data"]["example"]
    assert by_recipe["next_token/attention_rnn"].startswith(example)
    assert "'label': 'even'" in by_recipe["parity/rnn"] or "'label': 'odd'" in by_recipe["parity/rnn"]
    assert "'token_str'" in by_recipe["cloze/transformer_encoder"]
    assert by_recipe["lookahead_tags/lstm"].startswith("[('")
    assert "torch.Size([1, 1, " in by_recipe["moving_squares/conv_lstm"]


def test_snippets_run_with_the_package_where_the_folder_has_no_code(saved):
    assert all("import hf_seqmodels" in text and "trust_remote_code" not in text for _, text in saved["no code"])
    assert all(output.strip() for output in run_snippets(saved["no code"], package=True))


def test_models_of_transformers_need_neither_trust_nor_package(saved, tmp_path):
    _, text = saved["code"][-1]
    assert "trust_remote_code" not in text and "import hf_seqmodels" not in text and "wolf2020transformers" in text
    assert "A gpt2 model of transformers with" in text
    gpt2 = GPT2LMHeadModel.from_pretrained(saved["code"][-1][0])
    words = AutoTokenizer.from_pretrained(saved["code"][-1][0])
    assert head_of(gpt2) == "causal-lm" and write_plots(tmp_path, None, gpt2, words) == ["attention_map.png"]
    assert gpt2.config._attn_implementation == "sdpa", "as it was before the picture"


PICTURES = [
    (Case("seq_lstm", "bidirectional"), "token-classification", []),
    (Case("seq_lstm", "stacked"), "sequence-classification", ["gradient_flow"]),
    (Case("seq_gru", "plain"), "ctc", []),
    (Case("seq_rnn", "plain"), "backbone", []),
    (Case("seq_attention_rnn", "windowed"), "causal-lm", ["attention_map", "gradient_flow"]),
    (Case("seq_attention_rnn", "plain"), "sequence-classification", ["attention_map", "gradient_flow"]),
    (Case("seq_attention_rnn_seq2seq", "no_attention"), "seq2seq-lm", []),
    (Case("seq_attention_rnn_seq2seq", "bahdanau"), "backbone", ["attention_map"]),
    (Case("seq_transformer", "t5"), "seq2seq-lm", ["attention_map"]),
    (Case("seq_transformer_encoder", "attention_pooling"), "sequence-classification", ["attention_map"]),
    (Case("seq_transformer_encoder", "lsh"), "masked-lm", ["attention_map"]),
    (Case("seq_transformer_decoder", "sliding_window"), "causal-lm", ["attention_map"]),
    (Case("seq_transformer_decoder", "llama"), "causal-lm", ["attention_map"]),
]


@pytest.mark.parametrize(("case", "head", "expected"), PICTURES, ids=str)
def test_models_without_a_record_have_the_pictures_that_apply(case, head, expected, tmp_path):
    model = build(case, head)
    before = model.config._attn_implementation
    assert write_plots(tmp_path, None, model) == [f"{name}.png" for name in expected]
    assert model.config._attn_implementation == before and not model.training
    assert all(file.stat().st_size <= 25_000 for file in tmp_path.iterdir())


def test_the_head_is_found_for_every_model_of_ours():
    for case in (Case("seq_gru", "plain"), Case("seq_transformer_encoder", "plain")):
        for head in case.heads:
            model = build(case, head)
            assert head_of(model) == head and auto_name(head).startswith("AutoModel")


@pytest.mark.parametrize("room", [1, 2, 3, 5, 20, 82, 100, None])
@pytest.mark.parametrize("prompt", ["", "a", "a" * 17, "a" * 18, "é" * 200, "\ud800" * 40])
def test_prompt_and_new_tokens_have_a_place(prompt, room):
    for shared in (True, False):
        text, new = fit(prompt, room, shared)
        assert prompt.startswith(text) and 1 <= new <= 80 and bool(text) == bool(prompt)
        if room is None:
            assert (text, new) == (prompt, 80)
        elif room > 4:
            assert len(text.encode("utf-8", "replace")) + 2 + (new if shared else 0) <= room and (shared or new < room)


def test_only_a_table_of_positions_is_a_limit():
    learned, rotary = (
        build(Case("seq_transformer_decoder", name), "causal-lm").config for name in ("plain", "rotary")
    )
    assert learned.positions == "learned" and "It cannot read more than 256 positions." in limits(None, learned)
    assert rotary.max_position_embeddings == 256 and "positions" not in limits(None, rotary)
    assert "positions" not in limits(None, build(Case("seq_lstm", "plain"), "causal-lm").config)
    foreign = limits(None, LlamaConfig(max_position_embeddings=2048))
    assert "It was made for up to 2,048 positions." in foreign and "cannot" not in foreign
