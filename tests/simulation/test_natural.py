"""The wide pool and the natural wording: data files, plans, dialogues and questions."""

import random
import re
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest

from personavlm_lib.benchmark.lives import Life, read_lives, write_lives
from personavlm_lib.benchmark.questions import ASPECTS
from personavlm_lib.benchmark.synthesis import group_questions
from personavlm_lib.benchmark.validation import validate_life
from personavlm_lib.memory.records import TRAITS
from personavlm_lib.simulation.dialogue import render_dialogue
from personavlm_lib.simulation.lexicon import WIDE, pool
from personavlm_lib.simulation.natural import FrameDecks, frames, with_article
from personavlm_lib.simulation.plan import LifeEvent, sample_plan

SLOTS = {"value", "was", "cause", "friend", "whose", "item", "occasion", "day", "skill", "thing"}
REASONING = {"topic", "period", "date", "fact", "earlier", "answer", "caption", "list"}
KNOWN = SLOTS | REASONING | {"a_value", "a_was", "outing", "trait", "level"}
# End of a section's name -> slots that each of its messages needs, to state the fact.
NEEDED = {
    "new": {"value"},
    "changed": {"value", "was", "cause"},
    "friend": {"friend", "value"},
    "intent": {"item", "occasion"},
    "habit": {"day", "value"},
    "goal": {"value"},
    "reached": {"value"},
    "dropped": {"value"},
    "image.friend": {"friend", "thing"},
}
EXCHANGES = ("new", "changed", "follow", "chat", "habit", "intent", "goal", "mine", "again")


def slots_of(text: str) -> set[str]:
    """Names of the slots in a frame, without articles and capitals."""
    return {name.lower().removeprefix("a_") for name in re.findall(r"{(\w+)}", text)}


def wide_plan(seed: int, turns: int = 60):
    return sample_plan(seed, turns=turns, pool="wide")


@pytest.fixture(scope="module")
def lives(tmp_path_factory):
    images = tmp_path_factory.mktemp("natural") / "images"
    made = []
    for seed in range(8):
        plan = wide_plan(seed)
        turns = tuple(render_dialogue(plan, images, wording="natural"))
        made.append(Life(plan, turns, group_questions(plan, 24, 3)))
    return made


def test_frames_are_ascii_and_use_known_slots():
    for path in WIDE.glob("*.txt"):
        assert path.read_text(encoding="utf-8").isascii(), path.name
    for section, texts in frames().items():
        for text in texts:
            assert slots_of(text) <= {*KNOWN, "a"}, (section, text)


def test_no_message_of_a_frame_occurs_twice():
    messages = Counter()
    for texts in frames().values():
        messages.update(text.split(" || ")[0] for text in texts)
    assert [text for text, count in messages.items() if count > 1] == []


def test_exchanges_have_two_sides_and_state_their_fact():
    for section, texts in frames().items():
        last = section.split(".")[-1]
        needed = NEEDED.get(section, NEEDED.get(last, set()))
        for text in texts:
            if last in EXCHANGES and "question" not in section:
                assert text.count(" || ") == 1, (section, text)
            if "question" not in section and section != "image.friend":
                assert needed <= slots_of(text.split(" || ")[0]), (section, text)


def test_pictures_are_marked_once():
    marked = ("image.mine", "image.friend", "image.again", "sign", "question.owner")
    for section, texts in frames().items():
        for text in texts:
            assert text.split(" || ")[0].count("<img>") == (section in marked), (section, text)


def test_every_trait_has_sentences_at_every_score():
    for trait in TRAITS:
        for score in (1, 2, 4, 5):
            assert len(frames()[f"{trait}.{score}"]) >= 45


def test_values_of_one_list_are_different_and_not_contained_in_each_other():
    wide = pool("wide")
    lists = [*wide.core.values(), *wide.preferences.values(), *wide.events.values()]
    for values in (*lists, wide.habits, wide.goals, wide.items, wide.occasions):
        assert len(set(values)) == len(values) >= 50
        words = [f" {value.lower()} " for value in values]
        inside = [(a, b) for a in words for b in words if a != b and a in b]
        assert inside == []


def test_all_combinations_of_kind_and_key_have_frames():
    """Every event that a wide plan can hold finds a section."""
    sections = set()
    for seed in range(30):
        plan = wide_plan(seed, turns=100)
        render_dialogue(plan, Path("unused"), draw=False, wording="natural")
        sections |= {(event.kind, event.key) for event in plan.events}
    kinds = {kind for kind, _ in sections}
    assert kinds >= {"core", "preference", "friend", "relation", "event", "image", "goal_end"}
    preferences = {key for kind, key in sections if kind == "preference"}
    assert preferences == set(pool("wide").preferences)


@pytest.mark.parametrize("turns", [20, 60, 137, 500])
def test_wide_plans_have_exactly_the_turns_and_repeat(turns):
    plan = wide_plan(3, turns)
    assert len(plan.events) == turns
    assert plan == wide_plan(3, turns)
    facts = [event for event in plan.events if event.kind not in ("small_talk", "follow_up")]
    assert len(facts) <= 0.6 * turns + 2


def test_a_follow_up_comes_right_after_what_it_is_about():
    for seed in range(5):
        for before, event in pairwise(wide_plan(seed).events):
            if event.kind == "follow_up":
                assert event.key in (before.key, before.kind)


def test_three_traits_are_far_from_neutral_and_two_of_them_drift():
    for seed in range(30):
        plan = wide_plan(seed)
        before = plan.before.as_tuple()
        after = plan.after.as_tuple()
        assert sorted(abs(score - 3) for score in before) == [0, 0, 1.5, 1.5, 1.5]
        assert sum(a != b for a, b in zip(before, after, strict=True)) == 2


def stated(event: LifeEvent) -> list[str]:
    """What the message of an event must contain."""
    if event.kind in ("name", "core", "preference", "friend", "relation"):
        return [event.value, event.was, event.cause]
    if event.kind in ("skill", "goal", "goal_end"):
        return [event.value]
    if event.kind == "event":
        return [event.value, event.friend]
    if event.kind == "intent":
        return [event.key, event.value]
    if event.kind == "habit":
        return [event.key, event.value]
    return []


def test_messages_state_their_facts(lives):
    for life in lives:
        for turn, event in zip(life.turns, life.plan.events, strict=True):
            for value in stated(event):
                assert value.lower() in turn.user.lower(), (event.kind, event.key, turn.user)
            assert "{" not in turn.user + turn.assistant


def test_a_message_shows_the_traits_of_its_turn_and_no_others(lives):
    for life in lives:
        for turn, event in zip(life.turns, life.plan.events, strict=True):
            for position, trait in enumerate(TRAITS):
                for score in (1, 2, 4, 5):
                    sentences = frames()[f"{trait}.{score}"]
                    shown = any(sentence in turn.user for sentence in sentences)
                    assert shown == (event.scores[position] == score)


def test_no_message_and_no_reply_occurs_twice_in_a_life(lives):
    for life in lives:
        for side in ("user", "assistant"):
            texts = [getattr(turn, side) for turn in life.turns]
            assert len(set(texts)) == len(texts)


def test_messages_are_as_long_as_those_of_people(lives):
    lengths = [len(turn.user.split()) for life in lives for turn in life.turns]
    assert 15 <= sum(lengths) / len(lengths) <= 30


def test_natural_lives_obey_all_rules(lives):
    assert [violation for life in lives for violation in validate_life(life)] == []


def test_questions_of_all_tasks_are_asked_in_whole_sentences(lives):
    questions = [question for life in lives for question in life.questions]
    assert {question.task for question in questions} == set(ASPECTS)
    for question in questions:
        assert "{" not in question.text
        assert question.text[0].isupper() and question.text.rstrip('"')[-1] in "?.!"
        assert question.answer.lower() not in question.text.lower().split("i wrote:")[0]
    words = [len(q.text.split()) for q in questions if q.kind == "choice"]
    assert 15 <= sum(words) / len(words) <= 30


def test_items_of_an_alignment_pair_differ_in_the_reply_alone(lives):
    for life in lives:
        items = [question for question in life.questions if question.kind == "binary"]
        for one, other in zip(items[::2], items[1::2], strict=True):
            assert {one.answer, other.answer} == {"yes", "no"}
            message = one.text.split(" Someone replied: ")[0]
            assert other.text.startswith(message) and one.text != other.text


def test_wide_lives_are_read_as_they_were_written(lives, tmp_path):
    life = lives[0]
    folder = Path(life.turns[0].images[0]).parent if life.turns[0].images else None
    paths = [Path(image) for turn in life.turns for image in turn.images]
    file = (folder or paths[0].parent).parent / "lives.jsonl"
    write_lives(file, [life])
    assert read_lives(file) == [life]


def test_a_deck_repeats_nothing_before_it_is_used_up():
    decks = FrameDecks(random.Random(0))
    size = len(frames()["name"])
    drawn = [decks.draw("name") for _ in range(2 * size)]
    assert len(set(drawn[:size])) == len(set(drawn[size:])) == size


def test_articles():
    assert [with_article(noun) for noun in ("nurse", "actuary")] == ["a nurse", "an actuary"]
