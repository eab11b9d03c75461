"""The oracle: right where the conversation has shown the answer, and no wiser than chance where it has not."""

import re

import pytest

from personavlm_lib.agent.prompt_sets import PromptSet
from personavlm_lib.agent.protocol import parse_step
from personavlm_lib.agent.respond import AgentSettings, respond
from personavlm_lib.benchmark.lives import as_query, simulate_life
from personavlm_lib.benchmark.oracle import MEMORABLE_KINDS, Oracle
from personavlm_lib.benchmark.recordings import gold_memory
from personavlm_lib.evaluation.judges import accuracy, consistency, grammar
from personavlm_lib.memory.search import Retriever
from personavlm_lib.models.chat import ChatRequest
from personavlm_lib.models.engine import run_trajectories
from personavlm_lib.simulation.wording import statement

ALL = ("core", "semantic", "episodic", "procedural", "personality")


@pytest.fixture(scope="module", params=["nano", "full"])
def prompts(request):
    return PromptSet(request.param)


@pytest.fixture(scope="module")
def known(tmp_path_factory, prompts):
    """(life, its gold memory) of ten lives, half of either size."""
    folder, pairs = tmp_path_factory.mktemp("known"), []
    for seed in range(10):
        life = simulate_life(
            seed, folder / "images", *((28, 1.0) if seed % 2 else (70, 1.2)), 20, 3
        )
        pairs.append((life, gold_memory(life, folder / life.user, None, prompts=prompts)))
    return pairs


GUESSED = {"unknown", "nothing"}  # what a thought says before a guess


def answers(known, settings, *without):
    retriever = Retriever()
    for life, store in known:
        views = [store.as_of(question.time).without(*without) for question in life.questions]
        asked = zip(life.questions, views, strict=True)
        trajectories = [respond(as_query(q), view, retriever, settings) for q, view in asked]
        yield from zip(
            [life] * len(views),
            life.questions,
            run_trajectories(trajectories, life.oracle),
            strict=True,
        )


def test_it_is_right_on_gold_memory_and_keeps_the_grammar(known, prompts):
    rows = list(answers(known, AgentSettings(prompts)))
    right = [accuracy(question, response.answer) for _, question, response in rows]
    assert sum(right) / len(right) >= 0.95
    assert all(grammar(response) == 1 for *_, response in rows)
    shown = [
        (q, r)
        for (_, q, r), a in zip(rows, right, strict=True)
        if a and not GUESSED & {*r.steps[-1].think.split()}
    ]
    assert all(consistency(q, r) == 1 for q, r in shown)
    facts = [(q, r) for q, r in shown if q.kind != "binary"]
    hopping = [(q, r) for q, r in facts if len(q.hops) == 2 and not q.hops[0].note]
    assert hopping and all(len(r.steps) >= 3 for _, r in hopping)
    for (
        question,
        response,
    ) in facts:  # and it has looked at the evidence, or at as much of it as three searches bring
        looked_at, wanted = set(response.retrieved_turns), set(question.evidence)
        if question.task == "Relationship Recognition":
            assert looked_at & wanted
        elif question.hops:  # what became of a goal stands in its last turn
            assert {*question.evidence[-1:]} <= looked_at and (
                len(question.hops) == 1 or wanted <= looked_at
            )


def test_without_memory_it_is_no_better_than_chance(known, prompts):
    rows = list(answers(known, AgentSettings(prompts, max_retrievals=0), *ALL))
    choice = [accuracy(q, r.answer) for _, q, r in rows if q.kind == "choice"]
    binary = [accuracy(q, r.answer) for _, q, r in rows if q.kind == "binary"]
    assert abs(sum(choice) / len(choice) - 0.25) < 3 * (0.25 * 0.75 / len(choice)) ** 0.5
    assert abs(sum(binary) / len(binary) - 0.5) < 3 * 0.5 / len(binary) ** 0.5
    assert all(
        re.fullmatch(r"(my goal \w+ is )?unknown", r.steps[0].think)
        for _, q, r in rows
        if q.kind == "choice"
    )


@pytest.mark.parametrize(
    "missing", [("semantic", "episodic"), ("core",), ("procedural", "episodic")]
)
def test_what_is_taken_away_is_not_said(known, prompts, missing):
    """What it states as a fact stands in a message that it was given."""
    unknown = 0
    for life, question, response in answers(known, AgentSettings(prompts), *missing):
        if re.fullmatch(r"(my goal \w+ is )?unknown", response.steps[-1].think):
            unknown += 1
        elif question.kind != "binary":
            assert question.hops or "core" not in missing, (life.user, question)
            shown = [
                memory.content + (" <img>" if memory.concept else "")
                for f in response.retrieved
                for memory in f.semantic
            ]
            shown += [
                turn.user
                for f in response.retrieved
                for episode in f.episodic
                for turn in episode.raw
            ]
            shown += [text for f in response.retrieved for _, text in f.procedural]
            stated = [
                hop for hop in question.hops if hop.note or hop.sentence not in "\n".join(shown)
            ]
            counted = [hop.note for hop in stated if hop.sentence in "\n".join(shown)]
            assert response.steps[-1].think == " ".join(counted) or not stated, (
                life.user,
                question,
            )
    assert unknown > (3 if missing == ("core",) else 10)


def test_hop_sentences_stand_in_gold_memory(known):
    for life, store in known:
        for question in life.questions:
            view = store.as_of(question.time)
            memories = [m.content + (" <img>" if m.concept else "") for m in view.semantic]
            memories += [*(view.procedural.entries.values() if view.procedural else ())]
            text = "\n".join(memories + [turn.user for turn in view.turns])
            assert (
                all(hop.sentence in text for hop in question.hops) or question.answer == "unknown"
            )


def test_gold_memory_is_the_plan(known):
    for life, store in known:
        view, events = store.as_of(), life.plan.events
        kept = [event for event in events if event.kind in MEMORABLE_KINDS]
        assert [m.content for m in view.semantic] == [statement(event) for event in kept]
        assert sum(m.concept is not None for m in view.semantic) == sum(
            event.kind == "image" for event in events
        )
        newest = {b.key: b.value for b in events if b.kind in ("name", "core")}
        assert {**view.core.human, **view.core.persona} == newest and set(view.core.persona) == {
            "job"
        }
        assert sorted(i for episode in view.episodes for i in episode.turns) == list(
            range(len(events))
        )
        lasting: dict[
            str, str
        ] = {}  # by what is done or aimed at, the newest day; the five first told are kept
        for event in events:
            if event.kind in ("habit", "goal"):
                lasting[event.value] = statement(event)
            elif event.kind == "goal_end":
                del lasting[event.value]
        assert list(view.procedural.entries.values()) == [*lasting.values()][:5]
        observed = [state.observed.as_tuple() for state in view.personality_history]
        assert observed == [tuple(map(float, event.scores)) for event in events]


def test_it_looks_at_the_conversation_not_at_the_plan(known):
    life, _ = known[0]
    question = next(
        q for q in life.questions if len(q.hops) == 1 and q.task == "Latest Preference Recognition"
    )
    hop, about = question.hops[0], as_query(question)

    def step(text, **shown):
        oracle = life.oracle
        ask = ChatRequest(text, purpose="respond", subject=about, slots=shown)
        return parse_step(oracle.reply([(oracle.start(), ask)])[0].text)

    assert step("found nothing").retrieve.keywords == hop.keywords
    assert step(f"found {hop.sentence}").answer == question.answer
    assert step("found nothing", closing=True).think == "unknown"
    # another life's oracle cannot be asked
    with pytest.raises(KeyError):
        Oracle(life.plan, list(life.turns)).reply(
            [([], ChatRequest("", purpose="respond", subject=about))]
        )
