"""Public formats: what is exported reads back equal."""

import json
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from datasets import Dataset

from personavlm_lib.benchmark import recordings
from personavlm_lib.benchmark.formats import (
    LIVES,
    SFT,
    as_conversation,
    data_card,
    export_persona_mme,
    from_conversation,
    import_persona_mme,
    public_life,
    write_parquet,
)
from personavlm_lib.benchmark.lives import simulate_life, write_lives


def with_pixels(lives):
    """Users, turns and questions, with the contents of the pictures in place of their paths."""
    contents = []
    for life in lives:
        turns = []
        for turn in life.turns:
            pixels = tuple(Path(image).read_bytes() for image in turn.images)
            turns.append(replace(turn, images=pixels))
        contents.append((life.user, turns, life.questions))
    return contents


def test_persona_mme_reads_back_equal_and_exports_equal_files(lives, tmp_path):
    path = export_persona_mme(tmp_path / "a", map(public_life, lives))
    cases = json.loads(path.read_text(encoding="utf-8"))
    user = json.loads(
        (tmp_path / "a" / "samples" / "50" / "1" / "user_data.json").read_text(encoding="utf-8")
    )
    assert len(cases) == sum(q.kind == "choice" for life in lives for q in life.questions)
    assert sum("alignment" in case for case in cases) == 2
    assert {case["data_path"] for case in cases} == {
        "./data/Persona-MME/samples/50/0/user_data.json",
        "./data/Persona-MME/samples/50/1/user_data.json",
    }
    for case in cases:
        assert list(case["choices"]) == ["(a)", "(b)", "(c)", "(d)"]
        assert case["answer"] in case["choices"]
    assert set(user) == {"profile", "imgs", "sessions"} and len(user["imgs"]) > 3
    imported = import_persona_mme(path)
    assert with_pixels(imported) == with_pixels([public_life(life) for life in lives])
    assert export_persona_mme(tmp_path / "b", imported).name == "Persona-MME.json"
    files = [file for file in (tmp_path / "a").rglob("*") if file.is_file()]
    assert len(files) > 8
    for file in files:
        copy = tmp_path / "b" / file.relative_to(tmp_path / "a")
        assert copy.read_bytes() == file.read_bytes()


def test_persona_mme_of_the_authors_needs_no_additional_keys(lives, tmp_path):
    path = export_persona_mme(tmp_path, map(public_life, lives))
    cases = json.loads(path.read_text(encoding="utf-8"))
    for case in cases:
        del case["evidence"]
        case["time"] += " (Monday)"
        if "alignment" in case:
            case["alignment"] = {name: case["alignment"][name] for name in ("chosen", "rejected")}
    path.write_text(json.dumps(cases), encoding="utf-8")
    questions = [question for life in import_persona_mme(path) for question in life.questions]
    assert len(questions) == sum(len(life.questions) for life in lives)
    assert all(question.evidence == () for question in questions)
    assert {question.answer for question in questions if question.kind == "binary"} == {"yes", "no"}


def test_more_alignment_pairs_than_choice_questions_are_an_error(lives, tmp_path):
    life = public_life(lives[0])
    binary = tuple(question for question in life.questions if question.kind == "binary")
    with pytest.raises(ValueError, match="1 alignment pairs, 0 choice questions"):
        export_persona_mme(tmp_path, [replace(life, questions=binary)])


def test_recordings_read_back_equal_from_the_authors_conversations(lives, memories, tmp_path):
    samples = []
    recordings.gold_memory(lives[0], tmp_path / "m", None, samples).close()
    written = [json.loads(json.dumps(as_conversation(sample))) for sample in samples]
    assert [from_conversation(sample) for sample in written] == samples
    with_image = next(sample for sample in written if sample["image"])
    turns = with_image["conversations"]
    assert [turn["from"] for turn in turns[:2]] == ["human", "gpt"]
    marks = sum(turn["value"].count("<image>") for turn in turns)
    assert marks == len(with_image["image"])


def test_parquet_contains_the_pictures(tmp_path):
    life = simulate_life(1, tmp_path / "images", 20, 0.7, 8, 1)
    write_lives(tmp_path / "lives.jsonl", [life])
    row = json.loads((tmp_path / "lives.jsonl").read_text(encoding="utf-8"))
    row = {"user": row["user"]} | {
        key: [{name: entry[name] for name in LIVES[key].feature} for entry in row[key]]
        for key in ("turns", "questions")
    }
    write_parquet(tmp_path / "lives.parquet", [row], LIVES)
    sample = {
        "purpose": "semantic",
        "messages": [{"role": "user", "content": "<img>"}],
        "images": [next(image for turn in row["turns"] for image in turn["images"])],
    }
    write_parquet(tmp_path / "sft.parquet", [sample] * 3, SFT)
    for path in (tmp_path / "images").iterdir():
        path.unlink()
    read = Dataset.from_parquet(str(tmp_path / "lives.parquet"), cache_dir=str(tmp_path / "cache"))
    pictures = [image for turn in read[0]["turns"] for image in turn["images"]]
    assert read.features == LIVES and pictures
    assert {picture.size for picture in pictures} == {(84, 84)}
    assert [q["answer"] for q in read[0]["questions"]] == [q.answer for q in life.questions]
    read = Dataset.from_parquet(str(tmp_path / "sft.parquet"), cache_dir=str(tmp_path / "cache"))
    assert len(read) == 3
    assert read[2]["images"][0].size == (84, 84)
    assert read[0]["messages"] == sample["messages"]


def test_data_card_names_each_file_and_contains_the_tables():
    table = pd.DataFrame([{"group": "test", "share": 0.123456, "users": 2}])
    text = data_card("Lives", {"Statistics": table}, ["test.parquet"])
    assert text.startswith(
        "---\nconfigs:\n- config_name: test\n  data_files: test.parquet\n---\n# Lives"
    )
    assert "| group | share | users |\n| --- | --- | --- |\n| test | 0.1235 | 2 |" in text
