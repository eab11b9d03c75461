"""What is written in another's form comes back equal."""

import json
from dataclasses import replace

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


def as_text(lives):
    """Users with all that is in them but where the pictures lie: those are compared by their bytes."""
    turns = [
        [
            replace(t, images=tuple(open(image, "rb").read() for image in t.images))
            for t in life.turns
        ]
        for life in lives
    ]
    return [(life.user, turn, life.questions) for life, turn in zip(lives, turns, strict=True)]


def test_the_authors_benchmark_comes_back_equal(lives, tmp_path):
    path = export_persona_mme(tmp_path / "a", map(public_life, lives))
    cases = json.loads(path.read_text())
    user = json.loads((tmp_path / "a" / "samples" / "50" / "1" / "user_data.json").read_text())
    assert len(cases) == sum(q.kind == "choice" for life in lives for q in life.questions)
    assert sum("alignment" in case for case in cases) == 2
    assert {case["data_path"] for case in cases} == {
        f"./data/Persona-MME/samples/50/{i}/user_data.json" for i in (0, 1)
    }
    assert all(
        list(case["choices"]) == ["(a)", "(b)", "(c)", "(d)"] and case["answer"] in case["choices"]
        for case in cases
    )
    assert set(user) == {"profile", "imgs", "sessions"} and len(user["imgs"]) > 3
    back = import_persona_mme(path)
    assert as_text(back) == as_text([public_life(life) for life in lives])
    again = export_persona_mme(tmp_path / "b", back)
    files = sorted(
        p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*") if p.is_file()
    )
    assert len(files) > 8 and again.name == "Persona-MME.json"
    assert all(
        (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
        for name in files
    )


def test_a_file_of_theirs_needs_no_key_of_ours(lives, tmp_path):
    path = export_persona_mme(tmp_path, map(public_life, lives))
    cases = json.loads(path.read_text())
    for case in cases:
        del case["evidence"]
        case["time"] += " (Monday)"
        if "alignment" in case:
            case["alignment"] = {name: case["alignment"][name] for name in ("chosen", "rejected")}
    path.write_text(json.dumps(cases))
    asked = [question for life in import_persona_mme(path) for question in life.questions]
    assert len(asked) == sum(len(life.questions) for life in lives) and all(
        q.evidence == () for q in asked
    )
    assert {q.answer for q in asked if q.kind == "binary"} == {"yes", "no"}


def test_more_pairs_than_questions_are_refused(lives, tmp_path):
    life = public_life(lives[0])
    alone = replace(life, questions=tuple(q for q in life.questions if q.kind == "binary"))
    with pytest.raises(ValueError, match="1 alignment pairs, 0 choice questions"):
        export_persona_mme(tmp_path, [alone])


def test_recordings_as_the_authors_conversations(lives, memories, tmp_path):
    samples = []
    recordings.gold_memory(lives[0], tmp_path / "m", None, samples).close()
    written = [json.loads(json.dumps(as_conversation(sample))) for sample in samples]
    assert [from_conversation(sample) for sample in written] == samples
    shown = next(sample for sample in written if sample["image"])
    assert [turn["from"] for turn in shown["conversations"][:2]] == ["human", "gpt"]
    assert sum(turn["value"].count("<image>") for turn in shown["conversations"]) == len(
        shown["image"]
    )


def test_parquet_carries_the_pictures(tmp_path):
    life = simulate_life(1, tmp_path / "images", 20, 0.7, 8, 1)
    write_lives(tmp_path / "lives.jsonl", [life])
    row = json.loads((tmp_path / "lives.jsonl").read_text())
    row = {"user": row["user"]} | {
        key: [{name: entry[name] for name in LIVES[key].feature} for entry in row[key]]
        for key in ("turns", "questions")
    }
    write_parquet(tmp_path / "lives.parquet", [row], LIVES)
    sample = {
        "purpose": "semantic",
        "messages": [{"role": "user", "content": "<img>"}],
        "images": row["turns"][0]["images"],
    }
    sample["images"] = [next(image for turn in row["turns"] for image in turn["images"])]
    write_parquet(tmp_path / "sft.parquet", [sample] * 3, SFT)
    for path in (tmp_path / "images").iterdir():
        path.unlink()
    read = Dataset.from_parquet(str(tmp_path / "lives.parquet"), cache_dir=str(tmp_path / "cache"))
    shown = [image for turn in read[0]["turns"] for image in turn["images"]]
    assert read.features == LIVES and shown and {image.size for image in shown} == {(84, 84)}
    assert [q["answer"] for q in read[0]["questions"]] == [q.answer for q in life.questions]
    read = Dataset.from_parquet(str(tmp_path / "sft.parquet"), cache_dir=str(tmp_path / "cache"))
    assert (
        len(read) == 3
        and read[2]["images"][0].size == (84, 84)
        and read[0]["messages"] == sample["messages"]
    )


def test_the_card_names_each_file_and_shows_the_tables():
    text = data_card(
        "Lives",
        {"Statistics": pd.DataFrame([{"group": "test", "share": 0.123456, "users": 2}])},
        ["test.parquet"],
    )
    assert text.startswith(
        "---\nconfigs:\n- config_name: test\n  data_files: test.parquet\n---\n# Lives"
    )
    assert "| group | share | users |\n| --- | --- | --- |\n| test | 0.1235 | 2 |" in text
