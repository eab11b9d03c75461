"""Naturalness: which messages are compared, and the numbers of the table."""

import json
import math
import os
from datetime import datetime
from pathlib import Path

import pandas as pd
import pytest

from personavlm_lib.__main__ import main
from personavlm_lib.benchmark.lives import simulate_life, write_lives
from personavlm_lib.evaluation import naturalness
from personavlm_lib.evaluation.naturalness import (
    distinct,
    locomo_messages,
    match_lengths,
    message_frame,
    naturalness_table,
    read_messages,
    turn_messages,
)
from personavlm_lib.memory.records import Turn
from personavlm_lib.models.likelihood import TextLikelihood

DAY = datetime(2024, 5, 1)


def sentence(words, name="w"):
    return " ".join(f"{name}{n}" for n in range(words))


def frame_of(lengths, role="user"):
    """Messages of a source for each of its lengths in words: {source: lengths}."""
    messages = []
    for source, numbers in lengths.items():
        messages += [(source, role, sentence(words, source)) for words in numbers]
    return message_frame(messages)


def test_messages_of_a_chat_carry_no_marks_names_or_captions():
    turns = [Turn(DAY, "look at my <img> cat <img>", "lovely"), Turn(DAY, "<img>", "nice")]
    assert list(turn_messages("ours", turns)) == [
        ("ours", "user", "look at my cat"),
        ("ours", "assistant", "lovely"),
        ("ours", "user", ""),
        ("ours", "assistant", "nice"),
    ]
    said = ["Ann: hi: you [image: a dog]", "Bo: hello", "Ann: see you", "Bo: bye"]
    assert list(locomo_messages(Turn(DAY, text) for text in said)) == [
        ("LoCoMo", "user", "hi: you"),
        ("LoCoMo", "user", "hello"),
        ("LoCoMo", "assistant", "hello"),
        ("LoCoMo", "user", "see you"),
        ("LoCoMo", "user", "bye"),
        ("LoCoMo", "assistant", "bye"),
    ]


def test_empty_messages_are_left_out_and_words_are_counted_without_punctuation():
    frame = message_frame([("a", "user", ""), ("a", "user", "..."), ("a", "user", "It's 3, Bo!")])
    [row] = frame.to_dict("records")
    assert (row["words"], row["length"], row["template"]) == (["it's", "3", "bo"], 3, "it's 3, bo!")


def test_sources_give_the_same_number_of_messages_of_each_length():
    lengths = {"a": [2] * 9 + [12] * 7 + [70] * 2, "b": [3] * 4 + [11] * 20 + [99] * 5 + [30] * 6}
    frame = frame_of(lengths)
    everything = match_lengths(frame, 100)
    counts = everything.groupby("source")["length"].value_counts()
    assert counts.to_dict() == {
        ("a", 2): 4,
        ("a", 12): 7,
        ("a", 70): 2,
        ("b", 3): 4,
        ("b", 11): 7,
        ("b", 99): 2,
    }
    few = match_lengths(frame, 10)
    by_bin = pd.crosstab((few["length"] // 5).clip(upper=11), few["source"])
    assert by_bin.sum().to_dict() == {"a": 10, "b": 10}
    assert (by_bin["a"] == by_bin["b"]).all()
    assert few.index.isin(everything.index).all()


def test_sources_without_common_lengths_match_in_nothing():
    assert match_lengths(frame_of({"a": [1] * 5, "b": [20] * 5}), 3).empty


def test_distinct_counts_ngrams_inside_messages_up_to_the_number_of_words():
    messages = ["a b a b".split(), "a b c".split()]
    assert distinct(messages, 2, 100) == 3 / 5  # ab ba (ab) | (ab) bc, and never b|a across
    assert distinct(messages, 2, 6) == 2 / 4
    assert distinct(messages, 3, 100) == 3 / 3
    assert distinct([["a"]], 2, 5) == 0


def test_table_weights_tokens_and_measures_every_source_over_the_same_words(monkeypatch):
    asked = []

    def likelihoods(model, texts, prefix, max_tokens):
        asked.append((model, prefix, max_tokens))
        return [TextLikelihood(-2.0 * len(text), len(text)) for text in texts]

    monkeypatch.setattr(naturalness, "log_likelihoods", likelihoods)
    users = frame_of({"real": [8] * 6 + [40] * 6, "ours": [7] * 4})
    replies = frame_of({"real": [3] * 2, "ours": [4] * 5}, role="assistant")
    table = naturalness_table("model", pd.concat([users, replies]), count=3)
    table = table.set_index(["role", "source"])
    assert (table["nats"] == 2.0).all()
    user = table.loc["user"]
    assert user["n"].to_dict() == {"ours": 3, "real": 3}
    assert user["n_words"].to_dict() == {"ours": 7, "real": 8}
    assert user["words"].to_dict() == {"ours": 7, "real": 24}
    assert user["distinct_words"].to_dict() == {"ours": 28, "real": 28}
    assert user["most_frequent"].to_dict() == {"ours": 1, "real": 0.5}
    assert table.loc["assistant", "n"].to_dict() == {"ours": 2, "real": 2}
    assert set(asked) == {
        ("model", "<|im_start|>user\n", 120),
        ("model", "<|im_start|>assistant\n", 120),
    }


def test_template_column_counts_templates_instead_of_texts(monkeypatch):
    monkeypatch.setattr(naturalness, "log_likelihoods", lambda *_: [TextLikelihood(-1.0, 1)])
    frame = message_frame([("a", "user", f"my pet is {pet}") for pet in ("cat", "dog")])
    assert naturalness_table(None, frame)["most_frequent"].tolist() == [0.5]
    frame["template"] = "my pet is X"
    assert naturalness_table(None, frame)["most_frequent"].tolist() == [1.0]


def test_role_in_which_nothing_matches_has_no_number(monkeypatch):
    monkeypatch.setattr(naturalness, "log_likelihoods", lambda *_: [])
    table = naturalness_table(None, frame_of({"a": [1] * 5, "b": [20] * 5}))
    assert table["n"].tolist() == [0, 0]
    assert all(math.isnan(nats) for nats in table["nats"])


def write_data(folder):
    """LoCoMo's and MemoryBank's files with one conversation each."""
    spoken = [
        {"speaker": name, "dia_id": f"D1:{n}", "text": sentence(8, name)}
        for n, name in enumerate(["ann", "bo", "ann"], 1)
    ]
    conversation = {"session_1_date_time": "1:00 pm on 8 May, 2023", "session_1": spoken}
    locomo = [{"sample_id": "one", "conversation": conversation, "qa": []}]
    (folder / "locomo_dev5.json").write_text(json.dumps(locomo), encoding="utf-8")
    bank = {"Ivy": {"history": {"2023-05-02": [{"query": "a b", "response": "c d e"}]}}}
    (folder / "memorybank_en.json").write_text(json.dumps(bank), encoding="utf-8")


def test_command_reads_lives_and_both_data_sets(tmp_path, monkeypatch, capsys):
    write_data(tmp_path)
    lives = tmp_path / "test.jsonl"
    life = simulate_life(1, tmp_path / "images", days=10, size=0.5, questions=1, alignment=0)
    write_lives(lives, [life])
    messages = message_frame(read_messages(lives, tmp_path))
    counts = messages.groupby(["source", "role"]).size().to_dict()
    assert counts[("LoCoMo", "user")] == 3 and counts[("LoCoMo", "assistant")] == 1
    assert counts[("MemoryBank", "user")] == counts[("MemoryBank", "assistant")] == 1
    assert counts[("simulated", "user")] == len(life.turns)

    def likelihoods(model, texts, *_):
        return [TextLikelihood(-3.0, 1) for _ in texts]

    monkeypatch.setattr(naturalness, "LocalModel", lambda source, settings: source)
    monkeypatch.setattr(naturalness, "log_likelihoods", likelihoods)
    monkeypatch.setenv("PERSONAVLM_DATA", str(tmp_path))
    out = tmp_path / "out.json"
    assert main(["naturalness", str(lives), "--messages", "5", "--json", str(out)]) == 0
    printed = capsys.readouterr().out
    rows = json.loads(out.read_text(encoding="utf-8"))
    assert len(rows) == 6
    for row in rows:
        assert row["source"] in printed
        assert (row["lives"], row["model"]) == ("test.jsonl", "smollm2")
    monkeypatch.delenv("PERSONAVLM_DATA")
    assert main(["naturalness", str(lives)]) == 2
    assert "PERSONAVLM_DATA" in capsys.readouterr().err


def test_real_data_sets_hold_enough_messages_that_match():
    folder = Path(os.environ.get("PERSONAVLM_DATA") or "missing")
    if not (folder / "locomo_dev5.json").exists() or not (folder / "memorybank_en.json").exists():
        pytest.skip("PERSONAVLM_DATA does not name a folder with LoCoMo and MemoryBank")
    empty = Path(os.devnull)  # no lives
    frame = message_frame(read_messages(empty, folder))
    for role, messages in frame.groupby("role"):
        matched = match_lengths(messages, 300)
        assert matched.groupby("source").size().to_dict() == {"LoCoMo": 300, "MemoryBank": 300}
        means = matched.groupby("source")["length"].mean()
        assert abs(means["LoCoMo"] - means["MemoryBank"]) < 1.5, role
    assert not frame["text"].str.contains(r"\[image: |^\w+: ", regex=True).any()
