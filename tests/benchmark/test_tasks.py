"""The question makers: every question is answerable from its evidence, and none gives its answer away."""

from collections import Counter

import pytest

from personavlm_lib.agent.prompt_sets import periods
from personavlm_lib.benchmark.questions import ASPECTS, match_option
from personavlm_lib.benchmark.tasks import EVEN, LASTING, make_questions
from personavlm_lib.memory.records import SESSION_GAP
from personavlm_lib.simulation import lexicon
from personavlm_lib.simulation.dialogue import render_dialogue
from personavlm_lib.simulation.plan import sample_plan
from personavlm_lib.simulation.scenes import COUNTS
from personavlm_lib.simulation.wording import statement

N, PAIRS = 20, 3
# Tasks whose answer is not said but follows from what was said, by this table.
INFERRED = {
    "Implicit Intent Recognition": lexicon.KNOWLEDGE["habit"],
    "Implicit Preference Recommendation": lexicon.KNOWLEDGE["value"],
    "Relationship Dynamics Comprehension": lexicon.KNOWLEDGE["relation"],
    "Tiered Explanation Delivery": lexicon.KNOWLEDGE["level"],
    "Generalizing to New Scenarios": lexicon.KNOWLEDGE["sport"],
}


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    """(plan, turns, question) of 60 lives of both sizes."""
    folder, rows = tmp_path_factory.mktemp("unused"), []
    for seed in range(60):
        plan = sample_plan(seed, *((28, 1.0) if seed % 2 else (70, 1.2)))
        turns = render_dialogue(plan, folder, draw=False)
        rows += [(plan, turns, question) for question in make_questions(plan, N, PAIRS)]
    return rows


def test_the_same_seed_asks_the_same():
    plan = sample_plan(3)
    assert (
        make_questions(plan, N, PAIRS)
        == make_questions(plan, N, PAIRS)
        != make_questions(plan, N, PAIRS, seed=1)
    )


def test_as_many_as_wanted_and_every_task_that_exists(asked):
    tasks = Counter(question.task for *_, question in asked)
    assert set(tasks) == set(ASPECTS)
    assert min(tasks.values()) > 40
    assert 59 * (N + 2 * PAIRS) < len(asked) <= 60 * (N + 2 * PAIRS)
    assert len({question.case for *_, question in asked}) == len(asked)
    assert all(question.aspect == ASPECTS[question.task] for *_, question in asked)


def test_four_distinct_options_with_the_answer_among_them(asked):
    for *_, question in asked:
        wanted = {"choice": 4, "binary": 2}[question.kind]
        assert len(set(question.options)) == len(question.options) == wanted
        assert match_option(question.answer, list(question.options)) == question.options.index(
            question.answer
        )
        for letter, option in zip("abcd", question.options, strict=False):
            assert f"({letter}) {option}" in question.query


def test_letters_and_yes_and_no_are_balanced(asked):
    letters = Counter(q.options.index(q.answer) for *_, q in asked if q.kind == "choice")
    expected = letters.total() / 4
    assert (
        sum((letters[i] - expected) ** 2 / expected for i in range(4)) < 16.3
    )  # chi-squared, 3 df, p = 0.001
    binary = Counter(q.answer for *_, q in asked if q.kind == "binary")
    assert binary["yes"] == binary["no"] > 0


def test_the_answer_is_not_the_option_that_was_said_most_often(asked):
    """No task may be solved by counting, or by taking whatever the user has mentioned at all."""
    lone = [
        [o for o in q.options if any(o in turn.user.split() for turn in turns)] == [q.answer]
        for _, turns, q in asked if q.kind == "choice" and q.task == "Latest Preference Recognition"
    ]  # fmt: skip
    assert sum(lone) / len(lone) < 0.75


def test_evidence_comes_before_the_question_and_is_no_longer_before_the_models_eyes(asked):
    for plan, _, question in asked:
        assert (
            question.evidence or question.answer == "unknown"
        )  # what was never said has no evidence
        for index in question.evidence:
            assert plan.events[index].time + SESSION_GAP < question.time
        assert all(
            abs(event.time - question.time) >= SESSION_GAP
            for event in plan.events
            if event.time < question.time
        )


def test_the_answer_stands_in_the_words_of_the_evidence(asked):
    for plan, turns, question in asked:
        said = " ".join(turns[index].user for index in question.evidence).split()
        if question.task == "Visual Detail Recall":
            (event,) = (plan.events[index] for index in question.evidence)
            things = event.scene.things
            seen = {"color": event.value, "many": COUNTS[len(things) - 1], "on": event.scene.word}
            seen |= {"left": things[0].kind, "right": things[-1].kind}
            (asked_for,) = set(question.text.split()) & set(seen)
            assert question.answer == seen[asked_for] and event.value in {
                t.color for t in things if t.kind == event.key
            }
            assert question.answer not in said
        elif question.task in INFERRED:
            known = INFERRED[question.task]
            assert question.answer in [known[word] for word in said if word in known]
        elif question.task == "Long-term Goal Tracking" and question.answer in ("open", "unknown"):
            assert not {"reached", "dropped"} & set(said)
        elif question.task != "Personality Alignment":
            assert question.answer in said
        assert question.answer in question.thought.split() or question.kind == "binary"


def test_nothing_later_contradicts_the_answer(asked):
    """The newest value counts: no turn between the evidence and the question states another for the same key."""
    for plan, _, question in asked:
        last = plan.events[question.evidence[-1]] if question.evidence else plan.events[0]
        if question.kind == "choice" and last.kind == "image":  # seen again, it is the same
            again = [
                b for b in plan.events if (b.kind, b.who, b.key) == ("image", last.who, last.key)
            ]
            assert {event.value for event in again} == {last.value}
        if question.kind == "choice" and last.kind in LASTING:
            later = [b for b in plan.events if last.time < b.time < question.time]
            assert not any(
                (b.kind, b.who, b.key) == (last.kind, last.who, last.key) for b in later
            ), question
        if question.task == "Long-term Goal Tracking":
            (goal,) = set(question.text.split()) & set(lexicon.GOALS)
            ends = {
                b.key or "open" for b in plan.events if b.value == goal and b.time < question.time
            }
            assert question.answer in (ends - {"open"} or ends or {"unknown"})


def test_a_hop_restates_what_was_said_and_names_what_to_look_for(asked):
    for _, turns, question in asked:
        assert bool(question.hops) or question.task in ("Personality Alignment", "Semantic Information Recall",
                                                        "Latest Preference Recognition")  # fmt: skip
        assert not question.hops or len(question.hops) < 3 or all(hop.note for hop in question.hops)
        for hop in question.hops:
            evidence = [turns[index] for index in question.evidence]
            assert (
                any(hop.sentence in turn.user for turn in evidence) or question.answer == "unknown"
            ), hop
            if hop.start:
                assert any(hop.start <= turn.time <= hop.end for turn in evidence)
        words = question.text.split()
        looked_for = set(question.hops[0].keywords.split()) if question.hops else set()
        assert (
            not looked_for
            or looked_for & set(words)
            or question.task in (*INFERRED, "Relationship Recognition")
        )
    assert any(len(q.hops) == 2 for *_, q in asked) and any(
        hop.start for *_, q in asked for hop in q.hops
    )


def test_every_period_that_the_calendar_names_is_asked_about(asked):
    texts = " ".join(question.text for *_, question in asked)
    assert all(name in texts for name in periods(asked[0][2].time) if not name.startswith("last"))
    for plan, _, question in asked:
        for hop in (hop for hop in question.hops if hop.start):
            within = [
                b
                for b in plan.events
                if hop.start <= b.time <= hop.end and statement(b).startswith(hop.keywords)
            ]
            assert [statement(event) for event in within] == [hop.sentence]


def test_the_closest_friend_is_met_most(asked):
    for plan, _, question in asked:
        if question.task == "Relationship Recognition":
            met = Counter(plan.events[index].friend for index in question.evidence).most_common(2)
            assert met[0][0] == question.answer and (len(met) == 1 or met[0][1] > met[1][1])
            assert len(question.evidence) == len(question.hops)


def test_answers_that_are_few_come_equally_often(asked):
    for task, answers in EVEN.items():
        given = Counter(question.answer for *_, question in asked if question.task == task)
        assert set(given) == set(answers) and max(given.values()) <= 2 * min(given.values()), (
            task,
            given,
        )


def test_alignment_items_come_in_pairs_that_differ_in_one_word(asked):
    binary = [q for *_, q in asked if q.kind == "binary"]
    for one, other in zip(binary[::2], binary[1::2], strict=True):
        assert (one.user, one.time, {one.answer, other.answer}) == (
            other.user,
            other.time,
            {"yes", "no"},
        )
        different = [
            (a, b) for a, b in zip(one.text.split(), other.text.split(), strict=True) if a != b
        ]
        assert len(different) == 1
