"""The oracle answers correctly what the conversation has shown, and otherwise at chance level."""

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
def gold(tmp_path_factory, prompts):
    """(life, its gold memory) of ten lives, half of each size."""
    folder = tmp_path_factory.mktemp("gold")
    pairs = []
    for seed in range(10):
        days, size = (28, 1.0) if seed % 2 else (70, 1.2)
        life = simulate_life(seed, folder / "images", days, size, 20, 3)
        pairs.append((life, gold_memory(life, folder / life.user, None, prompts=prompts)))
    return pairs


GUESSED = {"unknown", "nothing"}  # words of a thought before a guess


def answers(gold, settings, *without):
    retriever = Retriever()
    for life, store in gold:
        views = [store.as_of(question.time).without(*without) for question in life.questions]
        trajectories = [
            respond(as_query(question), view, retriever, settings)
            for question, view in zip(life.questions, views, strict=True)
        ]
        responses = run_trajectories(trajectories, life.oracle)
        for question, response in zip(life.questions, responses, strict=True):
            yield life, question, response


def test_oracle_is_right_on_gold_memory_and_follows_the_grammar(gold, prompts):
    rows = list(answers(gold, AgentSettings(prompts)))
    right = [accuracy(question, response.answer) for _, question, response in rows]
    assert sum(right) / len(right) >= 0.95
    assert all(grammar(response) == 1 for *_, response in rows)
    shown = []
    for (_, question, response), is_right in zip(rows, right, strict=True):
        thought = response.steps[-1].think.split()
        if is_right and not GUESSED & set(thought):
            shown.append((question, response))
    assert all(consistency(q, r) == 1 for q, r in shown)
    facts = [(q, r) for q, r in shown if q.kind != "binary"]
    hopping = [(q, r) for q, r in facts if len(q.hops) == 2 and not q.hops[0].note]
    assert hopping and all(len(r.steps) >= 3 for _, r in hopping)
    for question, response in facts:
        retrieved = set(response.retrieved_turns)
        evidence = set(question.evidence)
        if question.task == "Relationship Recognition":
            assert retrieved & evidence  # three searches may not find all outings
        elif question.hops:
            # The last turn alone settles a single hop, such as the state of a goal.
            assert {*question.evidence[-1:]} <= retrieved
            assert len(question.hops) == 1 or evidence <= retrieved


def test_without_memory_oracle_is_at_chance_level(gold, prompts):
    rows = list(answers(gold, AgentSettings(prompts, max_retrievals=0), *ALL))
    choice = [accuracy(q, r.answer) for _, q, r in rows if q.kind == "choice"]
    binary = [accuracy(q, r.answer) for _, q, r in rows if q.kind == "binary"]
    assert abs(sum(choice) / len(choice) - 0.25) < 3 * (0.25 * 0.75 / len(choice)) ** 0.5
    assert abs(sum(binary) / len(binary) - 0.5) < 3 * 0.5 / len(binary) ** 0.5
    assert all(
        re.fullmatch(r"(my goal \w+ is )?unknown", r.steps[0].think)
        for _, q, r in rows
        if q.kind == "choice"
    )


def retrieved_sentences(response):
    sentences = []
    for retrieved in response.retrieved:
        for memory in retrieved.semantic:
            sentences.append(memory.content + (" <img>" if memory.concept else ""))
        for episode in retrieved.episodic:
            sentences += [turn.user for turn in episode.raw]
        sentences += [text for _, text in retrieved.procedural]
    return sentences


@pytest.mark.parametrize(
    "missing", [("semantic", "episodic"), ("core",), ("procedural", "episodic")]
)
def test_oracle_states_no_fact_from_a_removed_memory(gold, prompts, missing):
    """Every fact that the oracle states is in a message that it received."""
    unknown = 0
    for life, question, response in answers(gold, AgentSettings(prompts), *missing):
        if re.fullmatch(r"(my goal \w+ is )?unknown", response.steps[-1].think):
            unknown += 1
        elif question.kind != "binary":
            assert question.hops or "core" not in missing, (life.user, question)
            shown = "\n".join(retrieved_sentences(response))
            missing_hops = [h for h in question.hops if h.note or h.sentence not in shown]
            counted = [hop.note for hop in missing_hops if hop.sentence in shown]
            context = (life.user, question)
            assert response.steps[-1].think == " ".join(counted) or not missing_hops, context
    assert unknown > (3 if missing == ("core",) else 10)


def test_gold_memory_contains_the_hop_sentences(gold):
    for life, store in gold:
        for question in life.questions:
            view = store.as_of(question.time)
            memories = [m.content + (" <img>" if m.concept else "") for m in view.semantic]
            if view.procedural:
                memories += view.procedural.entries.values()
            text = "\n".join(memories + [turn.user for turn in view.turns])
            if question.answer != "unknown":
                assert all(hop.sentence in text for hop in question.hops)


def test_gold_memory_matches_the_plan(gold):
    for life, store in gold:
        view = store.as_of()
        events = life.plan.events
        memorable = [event for event in events if event.kind in MEMORABLE_KINDS]
        assert [m.content for m in view.semantic] == [statement(event) for event in memorable]
        n_images = sum(event.kind == "image" for event in events)
        assert sum(m.concept is not None for m in view.semantic) == n_images
        newest = {event.key: event.value for event in events if event.kind in ("name", "core")}
        assert {**view.core.human, **view.core.persona} == newest
        assert set(view.core.persona) == {"job"}
        episode_turns = sorted(i for episode in view.episodes for i in episode.turns)
        assert episode_turns == list(range(len(events)))
        # Habits and goals by activity or aim, in the order of first mention: the store takes five.
        current: dict[str, str] = {}
        for event in events:
            if event.kind in ("habit", "goal"):
                current[event.value] = statement(event)
            elif event.kind == "goal_end":
                del current[event.value]
        assert list(view.procedural.entries.values()) == [*current.values()][:5]


def test_oracle_reads_the_conversation_rather_than_the_plan(gold):
    life, _ = gold[0]
    question = next(
        q for q in life.questions if len(q.hops) == 1 and q.task == "Latest Preference Recognition"
    )
    hop = question.hops[0]
    query = as_query(question)

    def step(text, **slots):
        oracle = life.oracle
        request = ChatRequest(text, purpose="respond", subject=query, slots=slots)
        return parse_step(oracle.reply([(oracle.start(), request)])[0].text)

    assert step("found nothing").retrieve.keywords == hop.keywords
    assert step(f"found {hop.sentence}").answer == question.answer
    assert step("found nothing", closing=True).think == "unknown"
    # An oracle knows only its own questions.
    with pytest.raises(KeyError):
        request = ChatRequest("", purpose="respond", subject=query)
        Oracle(life.plan, list(life.turns)).reply([([], request)])
