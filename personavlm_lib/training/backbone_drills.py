"""Generate the training conversations of the nano backbone, from lives that no other stage uses.

There is one function for each kind of conversation (the short ones are called drills):
- `conversation`: raw turns of a simulated life in the response prompt, then several questions. The
  reasoning repeats the turn word for word, so that lookup is induction (see `models/nano.py`);
  several questions per context and growing contexts make the model learn it.
- `table_drill`: bare facts and questions about them. The answer follows a fact from value to value
  and states why it changed. This is most of the first twentieth of the training, because the model
  learns lookup fastest from it.
- `copy_drill`: random words of the whole vocabulary to repeat, so that lookup covers dates and
  grammar too.
- `list_drill`: numbered turns to repeat in the output grammar: numbers, and keys such as `"yoga":`
  that occur in the user's words.
- `date_drill`: what `last sunday` or `two weeks ago` means by the calendar in the prompt.
- `knowledge_drill`: common knowledge: the trait that a word shows and how strongly, and the thing
  that a value or a habit takes.
- `caption_drill`, `scene_drill`: scenes and everything in them, in the words in which the reasoning
  names it; then questions about a color, a number, a neighboring thing, a word.

Deviation from common practice: no text corpus exists at this size, so every token comes from the
simulated world.
"""

import random
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

from PIL import Image

from personavlm_lib.agent.prompt_sets import PromptSet, periods
from personavlm_lib.agent.protocol import EpisodeReply
from personavlm_lib.agent.protocol_writer import write_answer, write_episodes, write_pairs
from personavlm_lib.benchmark import tasks
from personavlm_lib.benchmark.oracle import final_thought, value_chain
from personavlm_lib.benchmark.questions import Question
from personavlm_lib.benchmark.seeds import BACKBONE_USERS
from personavlm_lib.memory.records import TRAITS, Turn
from personavlm_lib.models.nano import TAGS
from personavlm_lib.simulation import lexicon
from personavlm_lib.simulation.dialogue import render_dialogue, user_message
from personavlm_lib.simulation.plan import EPOCH, LifeEvent, LifePlan, pictured, sample_plan
from personavlm_lib.simulation.scenes import LOOSE, Thing, listed, render
from personavlm_lib.simulation.wording import core_profile, search_keywords, statement

PROMPTS = PromptSet("nano")
ANY_PLAN = sample_plan(BACKBONE_USERS.start)  # its events are always replaced
FACTS = (
    lexicon.CORE | lexicon.PREFERENCES | {"relation": lexicon.RELATIONS, "value": lexicon.VALUES}
)
PEOPLE = ("my", *lexicon.NAMES)
WHAT_TEMPLATES = ("ask {}", "ask what is {} ?", "ask what is {} now ?")
WHY_TEMPLATES = ("ask why did {} change ?",)
Message = tuple[str, str]  # role, text
Exchange = tuple[str, str]  # question, answer


@dataclass
class Row:
    """A training conversation: messages as (role, text with <img> marks), and its PIL images."""

    messages: list[Message]
    images: list[Image.Image]


def _sample_life(rng: random.Random, days: int = 28, size: float = 1.0) -> LifePlan:
    """Sample one of the lives that only the backbone is trained on."""
    seed = BACKBONE_USERS.start + rng.randrange(len(BACKBONE_USERS))
    return sample_plan(seed, days, size)


def _dialogue(exchanges: list[Exchange]) -> list[Message]:
    """The messages of some exchanges."""
    messages: list[Message] = []
    for question, answer in exchanges:
        messages.append(("user", question))
        messages.append(("assistant", answer))
    return messages


def _dialogue_about(context: str, exchanges: list[Exchange]) -> list[Message]:
    """The messages of some exchanges; the context precedes the first question."""
    messages = _dialogue(exchanges)
    role, first_question = messages[0]
    messages[0] = (role, f"{context}\n{first_question}")
    return messages


def _render_event(event: LifeEvent) -> Image.Image:
    assert event.scene is not None
    return render(event.scene)


def conversation(
    rng: random.Random, longest: int, questions: int, repeat: bool, pictures: bool
) -> Row:
    """Show at most `longest` turns of a life in the response prompt, and ask `questions` questions.

    `repeat`: a question may occur several times. `pictures`: keep turns with pictures.
    """
    # The study's two sizes of life, so that no condition's context is longer than all those seen
    # in training.
    days, size = rng.choice(((28, 1.0), (70, 1.2)))
    plan = _sample_life(rng, days, size)
    turns = render_dialogue(plan, Path("unused"), draw=False)
    start = rng.randrange(max(1, len(turns) - longest))
    stop = min(start + rng.randint(2, longest), len(turns))
    shown = [i for i in range(start, stop) if pictures or not turns[i].images]
    profile_events = _profile_events(rng, plan, start, shown)
    visible_events = []
    for i, event in enumerate(plan.events):
        in_profile = event.kind == "core" and event in profile_events
        if i in shown or in_profile:
            visible_events.append(event)
    visible_plan = replace(plan, events=tuple(visible_events))
    candidates = _answerable_questions(rng, visible_plan, plan)
    if not candidates:  # the stretch is small talk only
        return conversation(rng, longest + 4, questions, repeat, pictures)
    if repeat:
        chosen = rng.choices(candidates, k=questions)
    else:
        chosen = rng.sample(candidates, min(questions, len(candidates)))
    levels = {trait: rng.choice(("low", "mid", "high")) for trait in TRAITS}
    core = core_profile(profile_events)
    context = [turns[i] for i in shown]
    known_sentences = [f"my {key} is {value}" for key, value in core.items()]
    known_sentences += [turn.user for turn in context]
    known = " ".join(known_sentences)
    exchanges: list[Exchange] = []
    for question in chosen:
        question = _vary_question(rng, question, levels)
        query = Turn(question.time, question.query)
        if exchanges:
            text = f"ask {query.user}\nanswer now"
        else:
            text = PROMPTS(
                "respond",
                query=query,
                context=context,
                concepts=[],
                core=core,
                levels=levels,
                personality="",
                closing=True,
            )
        answer = write_answer(final_thought(question, known), question.answer)
        exchanges.append((text, answer))
    picture_events = [plan.events[i] for i in shown if turns[i].images]
    images = [_render_event(event) for event in picture_events]
    return Row(_dialogue(exchanges), images)


def _profile_events(
    rng: random.Random, plan: LifePlan, start: int, shown: list[int]
) -> tuple[LifeEvent, ...]:
    """The events that the core profile was written from.

    Half of the profiles are empty; the others cover the life up to the start of the shown turns or
    up to their end.
    """
    if not shown:
        return ()
    end = rng.choice((0, 0, start, shown[-1] + 1))
    return plan.events[:end]


def _answerable_questions(
    rng: random.Random, visible_plan: LifePlan, plan: LifePlan
) -> list[Question]:
    """The questions that the visible events answer with at most one lookup, or by counting.

    Questions about facts with a long history are listed twice, because they are the rarest.
    """
    moment = plan.events[-1].time + timedelta(hours=12)
    candidates = []
    for make_questions in tasks.MAKERS[:-1]:  # the last asks about alignment
        for question in make_questions(visible_plan, rng, moment):
            hops = question.hops
            if len(hops) < 2 or hops[0].note:
                candidates.append(question)
    long_histories = [question for question in candidates if len(question.history) > 2]
    return candidates + long_histories


def _vary_question(rng: random.Random, question: Question, levels: dict[str, str]) -> Question:
    """Replace 12% of the questions, and drop the options of 60% of the others.

    8% become a question about a reply style and 4% one for a trait's level, so that the model reads
    the prompt's line on personality as it reads the turns, and applies it.
    """
    draw = rng.random()
    if draw < 0.12:
        question = replace(question, history=())
        if draw < 0.08:
            return _style_question(rng, question, levels)
        return _trait_question(question, rng.choice(list(levels)), levels)
    if rng.random() < 0.6:
        return replace(question, options=())
    return question


def _trait_question(question: Question, trait: str, levels: dict[str, str]) -> Question:
    """Ask for a trait's level in place of `question`."""
    level = levels[trait]
    return replace(
        question,
        text=f"what is my {trait} ?",
        options=(),
        answer=level,
        thought=f"my {trait} {level}",
    )


def _style_question(rng: random.Random, question: Question, levels: dict[str, str]) -> Question:
    """Ask in place of `question` whether a reply style suits the user, as alignment items do."""
    trait = rng.choice(list(levels))
    level = levels[trait]
    if level == "mid":  # suits no style in particular
        return _trait_question(question, trait, levels)
    styles = lexicon.REPLY_STYLES[trait]
    style = rng.choice(list(styles.values()))
    suitable_style = styles[level]
    answer = "yes" if style == suitable_style else "no"
    return replace(
        question,
        text=f"does a {style} reply suit me ?",
        options=("yes", "no"),
        answer=answer,
        thought=f"my {trait} {level} takes {suitable_style} asked {style}",
    )


def table_drill(rng: random.Random, longest: int, questions: int) -> Row:
    """State at most `longest` bare facts, `who key is value`, and ask about them: pure lookup.

    Some facts have changed, and the newest value counts. Half of the tables show dates, as
    retrieved memories do.
    """
    # Few keys for many people, because the typical mistake is the right key of the wrong person.
    people = rng.sample(PEOPLE, rng.randint(2, 8))
    keys = rng.sample(list(FACTS), rng.choice((1, 2, 2, 3, 5)))
    pairs = [(who, key) for who in people for key in keys]
    chosen = rng.sample(pairs, rng.randint(2, min(longest, len(pairs))))
    dates = []
    for _ in range(3 * len(chosen)):
        date = EPOCH + timedelta(days=rng.randrange(90))
        dates.append(f"{date:%Y-%m-%d} ")
    dates.sort()
    dated = rng.random() < 0.5
    lines: list[str] = []
    histories = {}
    for who, key in chosen:
        facts = _fact_history(rng, who, key)
        statements = [statement(fact) for fact in facts]
        if len(facts) > 1 and rng.random() < 0.25:
            statements.pop(0)  # the first value is not shown
        histories[who, key] = (value_chain(statements), facts[-1])
        _insert_in_order(rng, lines, statements)
    if dated:
        lines = [date + line for date, line in zip(dates, lines, strict=False)]
    exchanges: list[Exchange] = []
    for who, key in rng.choices(chosen, k=questions):
        thought, newest = histories[who, key]
        if newest.cause and rng.random() < 0.4:
            template = rng.choice(WHY_TEMPLATES)
            answer = newest.cause
        else:
            template = rng.choice(WHAT_TEMPLATES)
            answer = newest.value
        question = template.format(f"{who} {key}")
        exchanges.append((question, write_answer(thought, answer)))
    return Row(_dialogue_about("\n".join(lines), exchanges), [])


def _fact_history(rng: random.Random, who: str, key: str) -> list[LifeEvent]:
    """One to three values of a fact, oldest first; each change has a cause."""
    count = rng.choice((1, 1, 2, 3))
    facts = []
    previous = ""
    for value in rng.sample(FACTS[key], count):
        cause = rng.choice(lexicon.CAUSES) if previous else ""
        fact = LifeEvent(EPOCH, "relation", who, key, value, previous, cause)
        facts.append(fact)
        previous = value
    return facts


def _insert_in_order(rng: random.Random, lines: list[str], statements: list[str]) -> None:
    """Insert the statements at random places among the lines, in their own order."""
    places = sorted(rng.randint(0, len(lines)) for _ in statements)
    for offset, (place, text) in enumerate(zip(places, statements, strict=True)):
        lines.insert(place + offset, text)


def date_drill(rng: random.Random, questions: int) -> Row:
    """Show a day's calendar, and ask for the first and last minute of its named periods."""
    now = EPOCH + timedelta(days=rng.randint(15, 120), minutes=rng.randrange(1440))
    named_periods = periods(now)
    entries = [f"today {now:%A %Y-%m-%d}"]
    for name, (start, _) in named_periods.items():
        entries.append(f"{name} {start:%Y-%m-%d}")
    calendar = " ".join(entries).lower()
    exchanges: list[Exchange] = []
    for name in rng.choices(list(named_periods), k=questions):
        start, end = named_periods[name]
        thought = f"<think>{name} {start:%Y-%m-%d}</think>\n"
        period = write_pairs({"start_time": start, "end_time": end}, quote=False)
        exchanges.append((f"ask {name}", thought + period))
    return Row(_dialogue_about(calendar, exchanges), [])


def list_drill(rng: random.Random, longest: int) -> Row:
    """Show numbered turns of a life, and ask the model to repeat them.

    One request is for all of them, by number; one is for those that memory stores under a key.
    """
    events = _sample_life(rng).events
    filed_kinds = ("habit", "goal", "core", "name")
    filed = [event for event in events if event.kind in filed_kinds]
    chosen = rng.sample(filed, min(len(filed), rng.randint(1, longest // 2)))
    chosen += rng.sample(events, rng.randint(1, longest // 2))
    chosen = rng.sample(chosen, len(chosen))
    lines = []
    episodes = []
    profile: dict[str, str] = {}
    for i, event in enumerate(chosen):
        lines.append(f"{i} user {_words_of(event)} assistant {rng.choice(lexicon.REPLIES)}")
        episodes.append(EpisodeReply(statement(event), search_keywords(event), (i,)))
        if event.kind in ("habit", "goal"):
            profile[event.value] = statement(event)
        elif event.kind in filed_kinds:
            profile[event.key] = event.value
    exchanges = [
        ("repeat all", write_episodes(episodes, quote=False)),
        ("repeat profile", write_pairs(profile, quote=False)),
    ]
    return Row(_dialogue_about("\n".join(lines), rng.sample(exchanges, 2)), [])


def _words_of(event: LifeEvent) -> str:
    """The user's message without the mark of its image."""
    return user_message(event).replace("<img>", "")


def knowledge_drill(rng: random.Random, questions: int) -> Row:
    """Ask for common knowledge, without any memory."""
    exchanges: list[Exchange] = []
    for _ in range(questions):
        if rng.random() < 0.3:
            exchanges.append(_needs_of_value(rng))
        elif rng.random() < 0.3:
            exchanges.append(_trait_of_style(rng))
        else:
            exchanges.append(_rating_of_turn(rng))
    return Row(_dialogue(exchanges), [])


def _needs_of_value(rng: random.Random) -> Exchange:
    """A question about what a value or a habit takes, with its answer."""
    needs = rng.choice(list(lexicon.KNOWLEDGE.values()))
    value = rng.choice(list(needs))
    need = needs[value]
    question = f"what does {value} take ?"
    thought = f"{value} takes {need}"
    return question, write_answer(thought, need)


def _trait_of_style(rng: random.Random) -> Exchange:
    """A question about the trait and level that a reply style suits, with its answer."""
    trait = rng.choice(list(lexicon.REPLY_STYLES))
    level = rng.choice(("low", "high"))
    styles = lexicon.REPLY_STYLES[trait]
    style = styles[level]
    question = f"what is {style} ?"
    answer = f"{trait} {level}"
    thought = f"{style} is {answer}"
    return question, write_answer(thought, answer)


def _rating_of_turn(rng: random.Random) -> Exchange:
    """A question about how strongly a trait shows in a user's words, with its answer."""
    plan = _sample_life(rng)
    event = rng.choice(plan.events)
    trait = rng.choice(list(lexicon.MARKERS))
    score = event.scores[TRAITS.index(trait)]
    markers = lexicon.MARKERS[trait]
    marker = markers.get(score, "nothing")
    question = f"rate {trait} {_words_of(event)}"
    thought = f"{marker} is {trait} {score}"
    return question, write_answer(thought, str(score))


def copy_drill(rng: random.Random, vocabulary: list[str]) -> Row:
    """Show random words of the whole vocabulary, dates and grammar included; repeat them twice.

    Some tags are among them: a token that is never a target keeps a random embedding, and an
    adapter cannot learn to write it.
    """
    words = rng.sample(vocabulary, rng.randint(4, 32))
    tags = rng.sample(TAGS, rng.randint(0, 3))
    mixed = words + tags
    shuffled = rng.sample(mixed, len(mixed))
    text = " ".join(shuffled)
    exchanges = [(f"repeat {text}", text), ("repeat", text)]
    return Row(_dialogue(exchanges), [])


def _image_event(rng: random.Random) -> LifeEvent:
    """An event in which a person shows a thing; a quarter are signs, which are hardest to read."""
    thing = "sign" if rng.random() < 0.25 else rng.choice(LOOSE)
    who = rng.choice(PEOPLE)
    fields = pictured(rng, who, thing)[0]
    return LifeEvent(EPOCH, **fields)


def caption_drill(rng: random.Random) -> Row:
    """Show one picture, and ask for everything in it: the fastest way to see many pictures."""
    event = _image_event(rng)
    scene = event.scene
    assert scene is not None
    picture = render(scene)
    if len(scene.things) == 1 and rng.random() < 0.3:
        picture = _crop_thing(picture, scene.things[0])
    question = f"{user_message(event)}\ncaption"
    answer = listed(scene)
    messages = _dialogue([(question, answer)])
    return Row(messages, [picture])


def _crop_thing(picture: Image.Image, thing: Thing) -> Image.Image:
    """The thing with a margin of 3 pixels, like the crop of a visual concept."""
    left, top, right, bottom = (edge * picture.width for edge in thing.box)
    left = max(0, left - 3)
    top = max(0, top - 3)
    return picture.crop((left, top, right + 3, bottom + 3))


def scene_drill(rng: random.Random, scenes: int, questions: int) -> Row:
    """Show one to `scenes` pictures, and ask up to `questions` questions about each."""
    events = {}
    for _ in range(rng.randint(1, scenes)):
        event = _image_event(rng)
        events[event.who, event.key] = event
    exchanges: list[Exchange] = []
    for event in events.values():
        plan = replace(ANY_PLAN, events=(event,))
        about_event = []
        for question in tasks.visual_detail_recall(plan, rng, EPOCH + timedelta(days=1)):
            answer = write_answer(question.thought, question.answer)
            about_event.append((f"ask {question.text}\nanswer now", answer))
        exchanges += rng.sample(about_event, min(questions, len(about_event)))
    shuffled = rng.sample(exchanges, len(exchanges))
    context = "\n".join(user_message(event) for event in events.values())
    images = [_render_event(event) for event in events.values()]
    return Row(_dialogue_about(context, shuffled), images)


def examples(seed: int) -> dict[str, Row]:
    """Return one row of each kind, for display."""
    rng = random.Random(seed)
    return {
        "conversation": conversation(rng, 6, 2, False, True),
        "table": table_drill(rng, 5, 2),
        "knowledge": knowledge_drill(rng, 4),
        "copy": copy_drill(rng, lexicon.vocabulary()),
        "caption": caption_drill(rng),
        "scene": scene_drill(rng, 2, 3),
        "date": date_drill(rng, 2),
        "list": list_drill(rng, 4),
    }
