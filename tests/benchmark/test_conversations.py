"""Reading of the three conversation formats, and writing of the authors' own."""

import json
import os
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest
from PIL import Image

from personavlm_lib.benchmark.conversations import read_conversations, write_user_data
from personavlm_lib.memory.records import Turn, split_sessions


def write(path: Path, data: object) -> Path:
    path.write_text(json.dumps(data), encoding="utf-8")
    return path


def test_memorybank_days_become_times_and_questions_come_from_the_file_beside(tmp_path):
    exchanges = [{"query": "hi", "response": "hello"}, {"query": "tea?", "response": "yes"}]
    users = {
        " Jason ": {
            "name": "Jason",
            "history": {"2023-05-02": exchanges[:1], "2023-04-27": exchanges},
        },
        "Ivy": {"history": {}},
    }
    path = write(tmp_path / "bank.json", users)
    questions = '{"Jason": ["who?", " when? "]}\n\n'
    (tmp_path / "bank_questions.jsonl").write_text(questions, encoding="utf-8")
    jason, ivy = read_conversations(path)
    assert (jason.user, jason.questions) == ("Jason", ["who?", "when?"])
    assert (ivy.user, ivy.turns, ivy.questions) == ("Ivy", [], [])
    times = [datetime(2023, 4, 27, 9, 0), datetime(2023, 4, 27, 9, 2), datetime(2023, 5, 2, 9, 0)]
    assert [(t.time, t.index) for t in jason.turns] == list(zip(times, range(3), strict=True))
    assert (jason.turns[1].user, jason.turns[1].assistant) == ("tea?", "yes")
    assert len(split_sessions(jason.turns)) == 2
    other = tmp_path / "other.jsonl"
    other.write_text('{"Ivy": ["why?"]}', encoding="utf-8")
    assert [c.questions for c in read_conversations(path, other)] == [[], ["why?"]]


def test_image_marks_of_the_authors_file_consume_its_images_in_order(tmp_path):
    (tmp_path / "a.png").touch()
    late = [{"time": "2024-09-13 09:00 (Friday)", "user": "<img> and <img>", "assistant": "nice"}]
    early = [
        {"time": "2024-09-12 09:40", "user": "see <img>", "assistant": ""},
        {"time": "2024-09-12 09:41", "user": "ok"},
    ]
    data = {
        "profile": {"basics": {"Name": "Kai"}},
        "imgs": ["a.png", "b.png", "c.png", "d.png"],
        "sessions": [early, late],
    }
    [kai] = read_conversations(write(tmp_path / "user_data.json", data))
    assert kai.user == "Kai" and kai.questions == []
    assert [t.images for t in kai.turns] == [(str(tmp_path / "a.png"),), (), ("b.png", "c.png")]
    assert [t.time.hour for t in kai.turns] == [9, 9, 9] and kai.turns[2].time.day == 13
    data["profile"] = {}
    assert read_conversations(write(tmp_path / "user_data.json", data))[0].user == tmp_path.name


def locomo(sample_id="conv-1"):
    with_image = {
        "speaker": "Ann",
        "dia_id": "D1:1",
        "text": "Look!",
        "blip_caption": "a photo of a cat",
        "img_url": ["x"],
    }
    conversation = {
        "speaker_a": "Ann",
        "speaker_b": "Bo",
        "session_10": [{"speaker": "Bo", "dia_id": "D2:1", "text": "Rain again."}],
        "session_10_date_time": "12:05 am on 1 June, 2023",
        "session_2": [with_image, {"speaker": "Bo", "dia_id": "D1:2", "text": "Lovely."}],
        "session_2_date_time": "1:56 pm on 8 May, 2023",
        "session_11_date_time": "soon",
    }
    evidence = ["D1:1; D2:1", "D", "D:1:02", "D1:1", "D9:9"]
    questions = [
        {"question": "Whose cat?", "evidence": evidence, "category": 1},
        {"question": "Why?", "category": 3},
    ]
    return {"sample_id": sample_id, "conversation": conversation, "qa": questions}


def test_locomo_gives_speakers_captions_and_evidence_even_from_malformed_ids(tmp_path):
    first, second = read_conversations(write(tmp_path / "two.json", [locomo(), locomo("conv-2")]))
    assert (first.user, second.user) == ("conv-1", "conv-2")
    assert [turn.user for turn in first.turns] == [
        "Ann: Look! [image: a photo of a cat]",
        "Bo: Lovely.",
        "Bo: Rain again.",
    ]
    assert [turn.index for turn in first.turns] == [0, 1, 2]
    assert [turn.time for turn in first.turns] == [
        datetime(2023, 5, 8, 13, 56),
        datetime(2023, 5, 8, 13, 58),
        datetime(2023, 6, 1, 0, 5),
    ]
    assert len(split_sessions(first.turns)) == 2
    assert first.questions == ["Whose cat?", "Why?"]
    probes = [(probe.category, probe.evidence) for probe in first.probes]
    assert probes == [("multi-hop", (0, 2, 1)), ("open", ())]


@pytest.mark.parametrize(
    "data",
    [
        [],
        {},
        3,
        {"Ann": 4},
        {"Ann": {"histories": {}}},
        {"Ann": {"history": {"May": []}}},
        {"Ann": {"history": {"2023-05-02": [{"q": "x"}]}}},
        {"Ann": {"history": [1]}},
        {"sessions": [[{"time": "noon", "user": "x"}]]},
        {"sessions": [[{"time": "2024-01-01 00:00", "user": "<img>"}]]},
        {"sessions": [3]},
        [3],
        [{"conversation": {}}],
        [{"conversation": {"session_1": []}, "qa": []}],
        [{**locomo(), "qa": [{"question": "x", "category": 7}]}],
    ],
)
def test_other_structures_are_an_error_of_one_line_that_names_the_file(tmp_path, data):
    path = write(tmp_path / "odd.json", data)
    with pytest.raises(ValueError, match="odd.json.*expected") as error:
        read_conversations(path)
    assert "\n" not in str(error.value)


def test_text_that_is_not_json_is_an_error(tmp_path):
    (tmp_path / "odd.json").write_text("hello", encoding="utf-8")
    with pytest.raises(ValueError, match="odd.json is not JSON"):
        read_conversations(tmp_path / "odd.json")


def test_questions_file_of_another_structure_is_an_error(tmp_path):
    write(tmp_path / "fine.json", {"Ann": {"history": {}}})
    write(tmp_path / "fine_questions.jsonl", {"Ann": "who?"})
    with pytest.raises(ValueError, match="cannot read .*fine_questions.jsonl as a questions file"):
        read_conversations(tmp_path / "fine.json")


def test_real_memorybank_file():
    folder = os.environ.get("PERSONAVLM_DATA")
    path = Path(folder or ".") / "memorybank_en.json"
    if not folder or not path.exists():
        pytest.skip("PERSONAVLM_DATA does not name a folder with memorybank_en.json")
    conversations = read_conversations(path)
    assert len(conversations) == 15 and len({c.user for c in conversations}) == 15
    for c in conversations:
        assert c.user == c.user.strip() and c.turns and c.questions
        assert [t.time for t in c.turns] == sorted(t.time for t in c.turns)
        assert len(split_sessions(c.turns)) == len({t.time.date() for t in c.turns}) >= 9


def test_written_user_data_reads_as_equal_turns(tmp_path):
    for name in "ab":
        Image.new("RGB", (4, 4), (ord(name), 0, 0)).save(tmp_path / f"{name}.png")
    a, b = str(tmp_path / "a.png"), str(tmp_path / "b.png")
    turns = [
        Turn(datetime(2024, 9, 12, 9, 40), 'see <img> and <img>: "ok"\n🐈', "nice", (a, b), 0),
        Turn(datetime(2024, 9, 12, 9, 41, 7), "no picture", "", (), 1),
        Turn(datetime(2024, 9, 13, 23, 59, 59, 5), "<img>", "再见", (a,), 2),
    ]
    path = tmp_path / "out" / "user_data.json"
    write_user_data(path, turns, {"basics": {"name": "Kai"}, "age": 30})
    [kai] = read_conversations(path)
    assert kai.user == "Kai"

    def with_pixels(turns):
        return [replace(t, images=tuple(Path(i).read_bytes() for i in t.images)) for t in turns]

    assert with_pixels(kai.turns) == with_pixels(turns)
    data = json.loads(path.read_text(encoding="utf-8"))
    assert list(data) == ["profile", "imgs", "sessions"]
    assert [len(session) for session in data["sessions"]] == [2, 1]
    assert data["sessions"][0][0]["time"] == "2024-09-12 09:40" and data["profile"]["age"] == 30


def test_image_marks_that_do_not_match_the_images_are_an_error(tmp_path):
    turn = Turn(datetime(2024, 9, 12), "x", images=("a.png",), index=5)
    with pytest.raises(ValueError, match="turn 5: 0 <img> marks, 1 images"):
        write_user_data(tmp_path / "user_data.json", [turn], {})


def test_real_locomo_file():
    folder = os.environ.get("PERSONAVLM_DATA")
    path = Path(folder or ".") / "locomo_dev5.json"
    if not folder or not path.exists():
        pytest.skip("PERSONAVLM_DATA does not name a folder with locomo_dev5.json")
    conversations = read_conversations(path)
    assert [len(c.turns) for c in conversations] == [419, 369, 663, 629, 680]
    assert sum(bool(probe.evidence) for c in conversations for probe in c.probes) == 997
    for c in conversations:
        assert [t.time for t in c.turns] == sorted(t.time for t in c.turns)
