"""Question makers: each question is answerable from its evidence and does not reveal its answer."""

from collections import Counter

import pytest

from personavlm_lib.agent.prompt_sets import periods
from personavlm_lib.benchmark.questions import ASPECTS, match_option
from personavlm_lib.benchmark.tasks import EVEN, LASTING, make_questions
from personavlm_lib.memory.records import SESSION_GAP
from personavlm_lib.simulation import lexicon
from personavlm_lib.simulation.dialogue import render_dialogue
from personavlm_lib.simulation.lexicon import pool
from personavlm_lib.simulation.plan import sample_plan
from personavlm_lib.simulation.scenes import COUNTS
from personavlm_lib.simulation.wording import statement

N, PAIRS = 20, 3
# Tasks whose answer follows from a statement by common knowledge: task -> table.
INFERRED = {
    "Implicit Intent Recognition": lexicon.KNOWLEDGE["habit"],
    "Implicit Preference Recommendation": lexicon.KNOWLEDGE["value"],
    "Relationship Dynamics Comprehension": lexicon.KNOWLEDGE["relation"],
    "Tiered Explanation Delivery": lexicon.KNOWLEDGE["level"],
    "Generalizing to New Scenarios": lexicon.KNOWLEDGE["sport"],
}


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """(plan, turns, question) of 60 lives of both sizes."""
    folder = tmp_path_factory.mktemp("unused")
    rows = []
    for seed in range(60):
        days, size = (28, 1.0) if seed % 2 else (70, 1.2)
        plan = sample_plan(seed, days, size)
        turns = render_dialogue(plan, folder, draw=False)
        rows += [(plan, turns, question) for question in make_questions(plan, N, PAIRS)]
    return rows


def test_questions_depend_on_the_seed_alone():
    plan = sample_plan(3)
    assert (
        make_questions(plan, N, PAIRS)
        == make_questions(plan, N, PAIRS)
        != make_questions(plan, N, PAIRS, seed=1)
    )


def test_all_tasks_occur_in_the_requested_number_of_questions(rows):
    tasks = Counter(question.task for *_, question in rows)
    assert set(tasks) == set(ASPECTS)
    assert min(tasks.values()) > 40
    assert 59 * (N + 2 * PAIRS) < len(rows) <= 60 * (N + 2 * PAIRS)
    assert len({question.case for *_, question in rows}) == len(rows)
    assert all(question.aspect == ASPECTS[question.task] for *_, question in rows)


def test_choice_has_four_distinct_options_including_the_answer(rows):
    for *_, question in rows:
        wanted = {"choice": 4, "binary": 2}[question.kind]
        assert len(set(question.options)) == len(question.options) == wanted
        assert match_option(question.answer, list(question.options)) == question.options.index(
            question.answer
        )
        for letter, option in zip("abcd", question.options, strict=False):
            assert f"({letter}) {option}" in question.query


def test_answer_letters_and_yes_no_are_balanced(rows):
    letters = Counter(q.options.index(q.answer) for *_, q in rows if q.kind == "choice")
    expected = letters.total() / 4
    chi_squared = sum((letters[i] - expected) ** 2 / expected for i in range(4))
    assert chi_squared < 16.3  # 3 degrees of freedom, p = 0.001
    binary = Counter(q.answer for *_, q in rows if q.kind == "binary")
    assert binary["yes"] == binary["no"] > 0


def test_mentioned_options_do_not_reveal_the_latest_preference(rows):
    """In most questions the user has mentioned other options too, not the answer alone."""
    revealed = []
    for _, turns, question in rows:
        if question.kind == "choice" and question.task == "Latest Preference Recognition":
            words = {word for turn in turns for word in turn.user.split()}
            mentioned = [option for option in question.options if option in words]
            revealed.append(mentioned == [question.answer])
    assert sum(revealed) / len(revealed) < 0.75


def test_evidence_lies_in_sessions_before_the_question(rows):
    for plan, _, question in rows:
        # A goal that was never mentioned has no evidence.
        assert question.evidence or question.answer == "unknown"
        for index in question.evidence:
            assert plan.events[index].time + SESSION_GAP < question.time
        assert all(
            abs(event.time - question.time) >= SESSION_GAP
            for event in plan.events
            if event.time < question.time
        )


def test_answer_follows_from_the_evidence(rows):
    for plan, turns, question in rows:
        words = " ".join(turns[index].user for index in question.evidence).split()
        if question.task == "Visual Detail Recall":
            (event,) = (plan.events[index] for index in question.evidence)
            things = event.scene.things
            visible = {
                "color": event.value,
                "many": COUNTS[len(things) - 1],
                "on": event.scene.word,
                "left": things[0].kind,
                "right": things[-1].kind,
            }
            (detail,) = set(question.text.split()) & set(visible)
            assert question.answer == visible[detail]
            assert event.value in {thing.color for thing in things if thing.kind == event.key}
            assert question.answer not in words
        elif question.task in INFERRED:
            table = INFERRED[question.task]
            assert question.answer in [table[word] for word in words if word in table]
        elif question.task == "Long-term Goal Tracking" and question.answer in ("open", "unknown"):
            assert not {"reached", "dropped"} & set(words)
        elif question.task != "Personality Alignment":
            assert question.answer in words
        assert question.answer in question.thought.split() or question.kind == "binary"


def test_no_later_event_contradicts_the_answer(rows):
    """No turn between the evidence and the question states another value for the same key."""
    for plan, _, question in rows:
        last = plan.events[question.evidence[-1]] if question.evidence else plan.events[0]
        same_fact = [
            event
            for event in plan.events
            if (event.kind, event.who, event.key) == (last.kind, last.who, last.key)
        ]
        if question.kind == "choice" and last.kind == "image":  # shown again, it is the same
            assert {event.value for event in same_fact} == {last.value}
        if question.kind == "choice" and last.kind in LASTING:
            later = [event for event in same_fact if last.time < event.time < question.time]
            assert not later, question
        if question.task == "Long-term Goal Tracking":
            (goal,) = set(question.text.split()) & set(lexicon.GOALS)
            states = {
                event.key or "open"
                for event in plan.events
                if event.value == goal and event.time < question.time
            }
            assert question.answer in (states - {"open"} or states or {"unknown"})


def test_hops_restate_evidence_with_keywords_from_the_question(rows):
    answered_by_profile = (
        "Personality Alignment",
        "Semantic Information Recall",
        "Latest Preference Recognition",
    )
    for _, turns, question in rows:
        assert bool(question.hops) or question.task in answered_by_profile
        assert not question.hops or len(question.hops) < 3 or all(hop.note for hop in question.hops)
        for hop in question.hops:
            evidence = [turns[index] for index in question.evidence]
            assert (
                any(hop.sentence in turn.user for turn in evidence) or question.answer == "unknown"
            ), hop
            if hop.start:
                assert any(hop.start <= turn.time <= hop.end for turn in evidence)
        keywords = set(question.hops[0].keywords.split()) if question.hops else set()
        if keywords and question.task not in (*INFERRED, "Relationship Recognition"):
            assert keywords & set(question.text.split())
    assert any(len(q.hops) == 2 for *_, q in rows)
    assert any(hop.start for *_, q in rows for hop in q.hops)


def test_every_named_period_occurs_and_holds_one_matching_event(rows):
    texts = " ".join(question.text for *_, question in rows)
    assert all(name in texts for name in periods(rows[0][2].time) if not name.startswith("last"))
    for plan, _, question in rows:
        for hop in (hop for hop in question.hops if hop.start):
            in_period = [event for event in plan.events if hop.start <= event.time <= hop.end]
            statements = [statement(event) for event in in_period]
            matching = [sentence for sentence in statements if sentence.startswith(hop.keywords)]
            assert matching == [hop.sentence]


def test_relationship_answer_is_the_friend_met_most(rows):
    for plan, _, question in rows:
        if question.task == "Relationship Recognition":
            met = Counter(plan.events[index].friend for index in question.evidence).most_common(2)
            assert met[0][0] == question.answer and (len(met) == 1 or met[0][1] > met[1][1])
            assert len(question.evidence) == len(question.hops)


def test_tasks_with_few_answers_use_them_evenly(rows):
    for task, answers_of in EVEN.items():
        answers = answers_of(pool("nano"))
        counts = Counter(question.answer for *_, question in rows if question.task == task)
        assert set(counts) == set(answers)
        assert max(counts.values()) <= 2 * min(counts.values()), (task, counts)


def test_alignment_pairs_differ_in_one_word(rows):
    binary = [q for *_, q in rows if q.kind == "binary"]
    for one, other in zip(binary[::2], binary[1::2], strict=True):
        assert (one.user, one.time) == (other.user, other.time)
        assert {one.answer, other.answer} == {"yes", "no"}
        different = [
            (a, b) for a, b in zip(one.text.split(), other.text.split(), strict=True) if a != b
        ]
        assert len(different) == 1
