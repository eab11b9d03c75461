"""Reply parsers: the exact format, the dialect of released weights, and arbitrary text."""

import random
from datetime import datetime

import pytest

from personavlm_lib.agent import protocol as p
from personavlm_lib.agent import protocol_writer
from personavlm_lib.benchmark.questions import match_option
from personavlm_lib.memory.records import TRAITS, BigFive

RETRIEVE = (
    '<think>look it up</think>\n<retrieve>\n"keywords": "my drink, cola"\n'
    '"start_time": "2024-04-23 15:25"\n"end_time": "null"\n</retrieve>'
)


def test_correct_retrieval_and_answer_have_no_errors():
    wanted = p.RetrieveArgs("my drink, cola", datetime(2024, 4, 23, 15, 25), None)
    assert p.parse_step(RETRIEVE) == p.Step("look it up", wanted, None, ())
    assert p.parse_step("<think>so</think><answer>Cola, at 7:30 😀</answer>") == p.Step(
        "so", None, "Cola, at 7:30 😀"
    )


@pytest.mark.parametrize("separator", ["\n", " "])
@pytest.mark.parametrize("quote", [True, False])
def test_written_replies_are_parsed_back(separator, quote):
    start, end = datetime(2024, 1, 2, 3, 4), datetime(2024, 5, 6, 7, 8)
    for args in (("my drink", None, None), ("runs at 7:30", start, end), ("tea, cats", None, end)):
        step = p.parse_step(
            protocol_writer.write_retrieve("hm", *args, separator=separator, quote=quote)
        )
        assert step == p.Step("hm", p.RetrieveArgs(*args), None, ())
    assert p.parse_step(protocol_writer.write_answer("hm", "pink", separator=separator)) == p.Step(
        "hm", None, "pink", ()
    )
    profile = BigFive(1.0, 2.0, 3.0, 4.0, 5.0)
    assert (
        p.parse_personality(
            protocol_writer.write_pairs(
                dict(zip(TRAITS, (1, 2, 3, 4, 5), strict=True)), separator=separator
            )
        )
        == profile
    )
    for reply in (
        p.SemanticReply("said so", True, "runs at 7:30, daily", "run, daily"),
        p.SemanticReply("", False, "", ""),
    ):
        assert (
            p.parse_semantic(
                protocol_writer.write_semantic(reply, separator=separator, quote=quote)
            )
            == reply
        )
    topics = [
        p.EpisodeReply("about tea", "tea", (0, 2, 3)),
        p.EpisodeReply("about cats: two", "cats, pets", (1,)),
    ]
    assert (
        p.parse_episodes(protocol_writer.write_episodes(topics, separator=separator, quote=quote))
        == topics
    )
    core = {"name": "Cassius Velius", "age": "30", "likes": "tea, coffee"}
    assert p.parse_core(protocol_writer.write_pairs(core, separator=separator, quote=quote)) == core


def test_quoted_values_with_special_characters_are_parsed_back():
    values = {
        "a b": 'she said "now": yes',
        "c": 'x\ny\n"z"',
        "d": '"',
        "e": 'key\n"a": 1',
        "f": "\\n, \\",
    }
    assert p.parse_pairs(protocol_writer.write_pairs(values)) == values


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("<answer>x</answer>", "no <think>"),
        ("<think>a</think>", "neither <answer> nor <retrieve>"),
        ("", "neither <answer> nor <retrieve>"),
        ("<think>a</think><answer>x", "unclosed <answer>"),
        ("<think>a<answer>x</answer>", "unclosed <think>"),
        ("a</think><answer>x</answer>", "unopened <think>"),
        ("Well. <think>a</think><answer>x</answer>", "text outside the tags"),
        ("<think>a</think><answer>x</answer> bye", "text outside the tags"),
        ("<think>a</think><answer></answer>", "empty <answer>"),
        ("<answer>x</answer><think>a</think>", "<think> after the action"),
        ("<think>a</think><answer>x</answer><answer>y</answer>", "more than one <answer>"),
        (RETRIEVE + "<answer>x</answer>", "both <answer> and <retrieve>"),
        ("<think>a <answer>x</answer></think>", "block inside <think>"),
        (RETRIEVE.replace("04-23", "02-31"), "bad start_time"),
        (RETRIEVE.replace('"null"', "soon"), "bad end_time"),
        (RETRIEVE.replace('"null"', "2023-01-01 00:00"), "end_time before start_time"),
        (RETRIEVE.replace("my drink, cola", ""), "empty keywords"),
        (RETRIEVE.replace('"end_time"', '"until"'), "no end_time"),
    ],
)
def test_format_error_is_reported_and_the_rest_is_parsed(text, error):
    step = p.parse_step(text)
    assert error in step.errors
    if "x" in text:
        assert step.answer == ("" if "empty <answer>" in step.errors else "x")
        assert step.think in ("a", "look it up", None)


def test_reasoning_may_mention_tags():
    step = p.parse_step("<think>no <retrieve> is needed</think><answer>x</answer>")
    assert (step.think, step.retrieve, step.answer, step.errors) == (
        "no <retrieve> is needed",
        None,
        "x",
        (),
    )


@pytest.mark.parametrize("end", ['"null"', "null", "None", '""', "", '"NULL"'])
def test_null_times_are_open_ends(end):
    args = p.parse_step(
        f'<retrieve>"keywords": tea, "start_time": 2024-04-23 15:25, "end_time": {end}</retrieve>'
    ).retrieve
    assert args == p.RetrieveArgs("tea", datetime(2024, 4, 23, 15, 25), None)


@pytest.mark.parametrize(
    "written",
    [
        "2024-04-23 15:25",
        "2024-04-23T15:25:00",
        "2024-04-23 15：25 (Tuesday)",
        "2024 - 04 - 23 15 : 25",
        "2024/4/23 15:25",
    ],
)
def test_time_formats(written):
    text = (
        f'<retrieve>\n"keywords"：“tea，cats”\n"start_time"：{written}\n'
        '"end_time": "2024-04-24"\n</retrieve>'
    )
    assert p.parse_step(text).retrieve == p.RetrieveArgs(
        "tea, cats", datetime(2024, 4, 23, 15, 25), datetime(2024, 4, 24, 23, 59)
    )


@pytest.mark.parametrize(
    ("text", "pairs"),
    [
        (
            '"name": Cassius Velius\n"run": runs at 7:30, daily',
            {"name": "Cassius Velius", "run": "runs at 7:30, daily"},
        ),
        ('{\n  "name": "Ann",\n  "age": 30\n}', {"name": "Ann", "age": "30"}),
        (
            '{"name": "Ann", "likes": "a "real" fight, twice"}',
            {"name": "Ann", "likes": 'a "real" fight, twice'},
        ),
        ('"mood"：开心，😀\n"note"： “他说：好”', {"mood": "开心，😀", "note": "他说：好"}),
        ('Here you are:\n```json\n"name": Ann\n```\nDone.', {"name": "Ann"}),
        ("'a': it's Rita's dip\n'b': 'Marie's'", {"a": "it's Rita's dip", "b": "Marie's"}),
        ('"a": "left open\n"b": next', {"a": '"left open', "b": "next"}),
        ('"a": one "b": two, "c": three', {"a": "one", "b": "two", "c": "three"}),
        ('"a": first\n"a": second', {"a": "first"}),
        ('"Ann\'s 7:30 run": "daily"\n\'b: c\': d', {"Ann's 7:30 run": "daily", "b: c": "d"}),
        ("“name”：Ann\n「年龄」：30", {"name": "Ann", "年龄": "30"}),
        ("Nothing to say: at all.", {}),
        ("{}", {}),
    ],
)
def test_pairs_in_the_dialect_of_released_weights(text, pairs):
    assert p.parse_pairs(text) == pairs


def test_core_and_procedural_replies():
    assert p.parse_core('"name": Ann\n"age": null\n"job": ""') == {"name": "Ann", "job": ""}
    many = "\n".join(f'"habit {i}": runs {i}' for i in range(7))
    assert list(p.parse_procedural(many)) == [f"habit {i}" for i in range(7)]


def test_personality_reply():
    text = (
        '"openness": {}\n"conscientiousness": "4"\n"extraversion": 3/5\n'
        '"Agreeableness": [2]\n"neuroticism": 1 (calm)'
    )
    assert p.parse_personality(text.format(5)) == BigFive(5.0, 4.0, 3.0, 2.0, 1.0)
    for wrong in (6, 0, -1, 30, "high", ""):
        assert p.parse_personality(text.format(wrong)) is None
    assert p.parse_personality(
        "openness: 1\nconscientiousness: 2\nextraversion: 3\nagreeableness: 4\n- neuroticism: 5"
    )
    assert p.parse_personality('"openness": 3') is None


def test_semantic_reply():
    text = (
        'Sure!\n"reason": said "my cat", at 7:30\n"decision": True // yes\n'
        '"content": my cat Miso (Image Object: cat)\n"keywords": ["cat", "Miso"]'
    )
    reply = p.parse_semantic(text)
    assert reply == p.SemanticReply(
        'said "my cat", at 7:30', True, "my cat Miso (Image Object: cat)", "cat, Miso"
    )
    assert p.image_object(reply.content) == ("my cat Miso", "cat")
    assert (
        p.parse_semantic(
            '"reason": small talk\n"decision": False\n"content": ""\n"keywords": ""'
        ).decision
        is False
    )
    for wrong in (
        '"decision": maybe\n"content": x',
        '"decision": true\n"content": ""',
        "hello",
        "",
    ):
        assert p.parse_semantic(wrong) is None


@pytest.mark.parametrize(
    ("written", "indices"),
    [("0", (0,)), ("0, 2, 3", (0, 2, 3)), ("[0, 2]", (0, 2)), ("[\n 0,\n 2\n]", (0, 2))],
)
def test_each_topic_summary_starts_an_episode(written, indices):
    topic = (
        '"topic_summary": Ann talked of tea, at 7:30.\n"keywords": tea，cup\n'
        '"source_dialog_indices": {}\n'
    )
    replies = p.parse_episodes("Topics:\n" + topic.format(written) + topic.format("none"))
    assert replies == [
        p.EpisodeReply("Ann talked of tea, at 7:30.", "tea, cup", got) for got in (indices, ())
    ]


def test_image_object_names_description_and_class():
    assert p.image_object("（Image Object：cat）") == ("", "cat")
    assert p.image_object("my cup (image object: <red cup>).") == ("my cup", "red cup")
    assert p.image_object("my cup (red)") is None and p.image_object("(Image Object: )") is None


def test_no_text_raises():
    rng = random.Random(0)
    samples = [
        RETRIEVE,
        protocol_writer.write_answer("a", "b"),
        '"topic_summary": x\n"source_dialog_indices": [0, 2]',
        "（Image Object: a）",
    ]
    samples.append(
        protocol_writer.write_pairs(dict.fromkeys(TRAITS, 3)) + '"decision": True\n"content": "x"'
    )
    pieces = [
        "<think>",
        "</think>",
        "<answer>",
        "</retrieve>",
        '"',
        "\\",
        "：",
        ":",
        "\n",
        "{",
        "]",
        "²",
        "９" * 5000,
        "😀",
    ]
    pieces += [
        "\ud800",
        "\0",
        "null",
        "2024-99-99 99:99",
        "0000-00-00",
        '"keywords":',
        "(",
        "(a)",
        "-",
        "1" * 400,
        "\u2028",
    ]
    for _ in range(2000):
        text = rng.choice(samples)
        for _ in range(rng.randint(1, 5)):
            i, j = sorted(rng.randint(0, len(text)) for _ in range(2))
            text = text[:i] + rng.choice(pieces) + (text[i:] if rng.random() < 0.6 else text[j:])
        step = p.parse_step(text)
        assert step.errors or (step.think and (step.answer is None) != (step.retrieve is None))
        for read in (
            p.parse_pairs,
            p.parse_personality,
            p.parse_semantic,
            p.parse_episodes,
            p.parse_core,
        ):
            read(text)
        p.parse_procedural(text), p.image_object(text), match_option(text, ["yes", text, ""])


def test_keys_in_a_thinking_block_are_no_reply():
    thought = '<think>"decision": false would be wrong, "content": "coffee"</think>\n'
    reply = '"reason": "new"\n"decision": true\n"content": "tea"\n"keywords": "tea"'
    assert p.parse_semantic(thought + reply) == p.parse_semantic(reply)
    assert p.parse_semantic(thought + reply).content == "tea"
    assert p.parse_semantic(thought.removesuffix("</think>\n") + reply) is None


@pytest.mark.parametrize(
    "text",
    [
        "<think>she wrote <answer>tea</answer>, but",
        "<think>she wrote <answer>tea</answer></think>\n",
        '<think>look <retrieve>"keywords": tea</retrieve>',
        "<think>so",
    ],
)
def test_thinking_that_was_cut_is_no_action(text):
    step = p.parse_step(text, is_cut=True)
    assert step.answer is None and step.retrieve is None
    assert "cut while thinking" in step.errors


def test_answer_that_was_cut_after_thinking_stays_an_answer():
    step = p.parse_step("<think>so</think><answer>tea with mil", is_cut=True)
    assert step.answer == "tea with mil"
