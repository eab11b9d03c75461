"""Algorithm 1, lines 1-3 and 17-19: what replies change in memory, and since when it is known."""

from datetime import datetime, timedelta
from types import SimpleNamespace

import pytest

from personavlm_lib.agent.prompt_sets import PromptSet
from personavlm_lib.agent.update import replay_conversation, update_session, update_turn
from personavlm_lib.memory.personality import BigFive
from personavlm_lib.memory.records import SESSION_GAP, CoreMemory, Turn
from personavlm_lib.memory.store import MemoryStore
from personavlm_lib.models.chat import ChatReply
from personavlm_lib.models.engine import run_trajectories

NANO = PromptSet("nano")
START = datetime(2024, 3, 4, 9)
HIGH = (
    '"openness": 5\n"conscientiousness": 3\n"extraversion": 1\n"agreeableness": 3\n"neuroticism": 3'
)
KEEP = (
    '"reason": new preference\n"decision": true\n"content": my drink is tea\n"keywords": my drink'
)
SKIP = '"reason": small talk\n"decision": false\n"content": \n"keywords": '
CORE = '"name": alice\n"city": rome\n"job": nurse'
HABIT = '"yoga": every monday i do yoga'
TOPICS = '"topic_summary": drinks\n"keywords": drink\n"source_dialog_indices": 0, 1'
UNUSABLE = [
    "",
    "no",
    '"decision": perhaps',
    '"decision": true',
    "\x00" * 5,
    '"openness": 9\n"source_dialog_indices": 0',
]


@pytest.fixture
def store():
    return MemoryStore.in_memory()


def turn(store, text="my drink is tea", minutes=0, images=()):
    return store.add_turn(Turn(START + timedelta(minutes=minutes), text, "noted", images))


def contents(store):
    view = store.as_of()
    known = (view.semantic, view.episodes, view.core, view.procedural)
    return *known, view.personality.profile if view.personality else BigFive.neutral()


def test_turn_moves_the_profile_and_adds_a_memory(store, script):
    run_trajectories(
        [update_turn(store, turn(store), NANO, written_by="sft")], script([HIGH, KEEP])
    )
    view = store.as_of()
    (memory,) = view.semantic
    assert (memory.content, memory.keywords, memory.kind, memory.sources) == (
        "my drink is tea",
        "my drink",
        "fact",
        (0,),
    )
    assert (
        memory.happened_from == memory.known_from == START
        and memory.written_by == f"sft/{NANO.label}"
    )
    assert view.personality.observed == BigFive(5, 3, 1, 3, 3) and view.personality.m == 1
    assert view.personality.profile.openness > 3.9 and view.personality.profile.extraversion < 2.1


def test_negative_decision_stores_nothing(store, script):
    run_trajectories([update_turn(store, turn(store), NANO)], script([HIGH, SKIP]))
    assert store.as_of().semantic == []


@pytest.mark.parametrize("bad", UNUSABLE)
def test_unreadable_reply_leaves_the_memory_unchanged(store, script, bad):
    first = turn(store)
    run_trajectories([update_turn(store, first, NANO)], script([HIGH, KEEP]))
    run_trajectories([update_session(store, [first], NANO)], script([CORE, HABIT, TOPICS]))
    before = contents(store)
    assert before[0] and before[1] and before[2] and before[3]
    second = turn(store, "my drink is cola", 120)
    run_trajectories([update_turn(store, second, NANO)], script([bad, bad]))
    assert contents(store) == before
    assert store.as_of().personality.observed is None and store.as_of().personality.m == 2
    # A reply with a pair is readable: core and procedural memory accept any key.
    unreadable = '":' not in bad
    run_trajectories(
        [update_session(store, [second], NANO)],
        script([bad if unreadable else CORE, bad if bad and unreadable else HABIT, bad]),
    )
    assert contents(store)[:2] == before[:2] and contents(store)[3:] == before[3:]
    assert contents(store)[2].human == before[2].human


def test_empty_habits_reply_clears_habits_and_six_are_rejected(store, script):
    session = [turn(store)]
    run_trajectories([update_session(store, session, NANO)], script([CORE, HABIT, TOPICS]))
    run_trajectories(
        [update_session(store, [turn(store, minutes=90)], NANO)], script([CORE, "", TOPICS])
    )
    assert (
        store.as_of().procedural.entries == {}
        and store.as_of(START + 2 * SESSION_GAP).procedural.entries
    )
    six = "\n".join(f'"k{n}": every day {n}' for n in range(6))
    run_trajectories(
        [update_session(store, [turn(store, minutes=180)], NANO)], script([CORE, six, TOPICS])
    )
    assert store.as_of().procedural.entries == {}
    (rejected,) = store.as_of().rejected
    assert (rejected.purpose, rejected.raw, rejected.sources) == ("procedural", six, (2,))
    assert "at most 5" in rejected.reason


def test_core_update_without_name_or_value_is_rejected(store, script):
    run_trajectories(
        [update_session(store, [turn(store)], NANO, "rl")], script([CORE, HABIT, TOPICS])
    )
    before = store.as_of().core
    for minutes, bad in (
        (90, '"city": paris'),
        (180, '"name": alice\n"city":\n"job": cook'),
        (270, "nothing new"),
    ):
        run_trajectories(
            [update_session(store, [turn(store, minutes=minutes)], NANO, "rl")],
            script([bad, HABIT, TOPICS]),
        )
        assert store.as_of().core == before
        assert (store.as_of().rejected[-1].raw, store.as_of().rejected[-1].written_by) == (
            bad,
            f"rl/{NANO.label}",
        )
    reasons = [rejected.reason for rejected in store.as_of().rejected]
    assert (
        "name is lost" in reasons[0]
        and "'city' has no value" in reasons[1]
        and "no entry" in reasons[2]
    )


def test_edited_values_keep_colons_quotes_emoji_and_line_breaks(store, script):
    run_trajectories([update_session(store, [turn(store)], NANO)], script([CORE, HABIT, TOPICS]))
    run_at = '"yoga": "at 7:30 \\"sharp\\" 🧘\\nthen tea"\n"read": reads'
    run_trajectories(
        [update_session(store, [turn(store, minutes=90)], NANO)], script([CORE, run_at, TOPICS])
    )
    version = store.as_of().procedural
    assert version.entries == {"yoga": 'at 7:30 "sharp" 🧘\nthen tea', "read": "reads"}
    assert [(edit.op, edit.key) for edit in version.edits] == [("change", "yoga"), ("add", "read")]


def test_update_that_is_no_longer_pending_is_not_written(store, script):
    pending_turn = store.add_turn(Turn(START, "my drink is tea", "noted"), pending=True)
    jobs = store.pending()
    assert [(job.work, job.turn) for job in jobs] == [("turn", 0), ("session", 0)]
    run_trajectories([update_turn(store, pending_turn, NANO, jobs=jobs[:1])], script([HIGH, KEEP]))
    after = contents(store)
    # The same update again, as another process would run it later.
    run_trajectories([update_turn(store, pending_turn, NANO, jobs=jobs[:1])], script([HIGH, KEEP]))
    assert contents(store) == after and store.pending() == jobs[1:]


def test_session_updates_are_known_an_hour_after_the_last_turn(store, script):
    session = [turn(store, minutes=0), turn(store, minutes=20)]
    run_trajectories([update_session(store, session, NANO, "rl")], script([CORE, HABIT, TOPICS]))
    end = START + timedelta(minutes=20) + SESSION_GAP
    before, after = store.as_of(end - timedelta(minutes=1)), store.as_of(end)
    assert (before.core, before.procedural, before.episodes) == (None, None, [])
    assert after.core.human == {"name": "alice", "city": "rome"} and after.core.persona == {
        "job": "nurse"
    }
    assert after.procedural.entries == {"yoga": "every monday i do yoga"}
    (episode,) = after.episodes
    assert (episode.turns, episode.summary, episode.written_by) == (
        (0, 1),
        "drinks",
        f"rl/{NANO.label}",
    )
    assert (episode.happened_from, episode.happened_to) == (START, START + timedelta(minutes=20))


def test_topic_indices_count_within_the_session(store, script):
    turn(store)
    session = [
        turn(store, "hello there", 120),
        turn(store, "my food is pizza", 125),
        turn(store, "bye", 130),
    ]
    topics = "\n".join(TOPICS.replace("0, 1", indices) for indices in ("1, 2, 9", "7", ""))
    run_trajectories([update_session(store, session, NANO)], script(["", "", topics]))
    assert [episode.turns for episode in store.as_of().episodes] == [(2, 3)]
    assert store.as_of().episodes[0].happened_from == START + timedelta(minutes=125)


def recognizer(calls, crop="crop.png"):
    return SimpleNamespace(crop=lambda path, name, folder: calls.append((path, name)) or crop)


def test_class_name_selects_the_crop(store, script):
    image_turn, calls = turn(store, "look at my mug <img>", images=("photo.png",)), []
    concept = KEEP.replace("my drink is tea", "my mug (Image Object: cup)")
    model = script([HIGH, concept])
    run_trajectories([update_turn(store, image_turn, NANO, recognizer(calls))], model)
    (memory,) = store.as_of().semantic
    assert calls == [("photo.png", "cup")] and all(
        ask.images == ("photo.png",) for ask in model.asks
    )
    assert (memory.content, memory.kind) == ("my mug", "concept")
    assert (memory.concept.class_name, memory.concept.crop) == ("cup", "crop.png")


def test_concept_without_image_or_crop_keeps_its_text(store, script):
    concept = KEEP.replace("my drink is tea", "my mug (Image Object: cup)")
    calls = []
    run_trajectories(
        [update_turn(store, turn(store, "my mug"), NANO, recognizer(calls))],
        script([HIGH, concept]),
    )
    image_turn = turn(store, "look at my mug <img>", 5, images=("photo.png",))
    run_trajectories(
        [update_turn(store, image_turn, NANO, recognizer(calls, None))], script([HIGH, concept])
    )
    assert len(calls) == 1 and [memory.concept for memory in store.as_of().semantic] == [None, None]
    assert "my mug" in store.as_of().semantic[1].content


def test_image_marks_in_replies_are_removed(store, script):
    """Otherwise a prompt with the memory would have more marks than images and be rejected."""
    written = KEEP.replace("tea", "tea <img>")
    run_trajectories([update_turn(store, turn(store), NANO)], script([HIGH, written]))
    run_trajectories(
        [update_session(store, [turn(store)], NANO)],
        script(['"city": rome <img>', '"yoga": yoga <img>', TOPICS]),
    )
    view = store.as_of()
    assert (
        "<img>"
        not in view.semantic[0].content + view.core.human["city"] + view.procedural.entries["yoga"]
    )


@pytest.mark.parametrize("bad", UNUSABLE)
def test_conversation_is_replayed_with_unusable_replies(store, script, bad):
    turns = [Turn(START + timedelta(minutes=m), f"turn {m}", "noted") for m in (0, 10, 100, 300)]
    run_trajectories([replay_conversation(store, turns, NANO)], script([bad] * 100))
    assert [t.index for t in store.as_of().turns] == [0, 1, 2, 3]
    assert len(store.as_of().personality_history) == 4


def test_each_session_is_consolidated_once_it_has_ended(store, script):
    turns = [Turn(START + timedelta(minutes=m), f"turn {m}", "noted") for m in (0, 10, 70)]

    def purposes(until):
        model = script([""] * 100)
        run_trajectories(
            [replay_conversation(MemoryStore.in_memory(), turns, NANO, until=until)], model
        )
        return [ask.purpose for ask in model.asks]

    one, session = ["personality", "semantic"], ["core", "procedural", "episodic"]
    assert purposes(None) == one * 2 + session + one + session
    assert purposes(turns[-1].time + SESSION_GAP) == purposes(None)
    assert purposes(turns[-1].time + timedelta(minutes=59)) == one * 2 + session + one


def profile_of(count):
    return '"name": alice\n' + "\n".join(f'"fact{n}": value {n}' for n in range(count))


@pytest.mark.parametrize("kept, max_removed, accepted", [(5, 0.3, False), (8, 0.3, True)])
def test_a_rewrite_that_leaves_out_too_much_is_kept_for_inspection(
    store, script, kept, max_removed, accepted
):
    for reply, minutes in ((profile_of(11), 0), (profile_of(kept), 200)):
        session = [turn(store, minutes=minutes)]
        update = update_session(store, session, NANO, max_removed=max_removed)
        run_trajectories([update], script([reply, HABIT, TOPICS]))
    view = store.as_of()
    assert len(view.core.human) == 1 + (kept if accepted else 11)
    reasons = [(rejected.purpose, rejected.reason, rejected.raw) for rejected in view.rejected]
    expected = [("core", "the reply leaves out 6 of 12 entries", profile_of(5))]
    assert reasons == ([] if accepted else expected)


def test_the_study_accepts_any_rewrite_and_few_entries_may_always_go(store, script):
    for reply, minutes in ((profile_of(11), 0), (profile_of(0), 200)):
        update = update_session(store, [turn(store, minutes=minutes)], NANO)
        run_trajectories([update], script([reply, HABIT, TOPICS]))
    assert store.as_of().core.human == {"name": "alice"}
    habits = '"run": runs\n"read": reads\n"tea": drinks tea'
    for reply, minutes in ((habits, 400), ("", 600)):
        update = update_session(store, [turn(store, minutes=minutes)], NANO, max_removed=0.0)
        run_trajectories([update], script([profile_of(0), reply, TOPICS]))
    assert store.as_of().procedural.entries == {}


def test_a_rewrite_that_was_cut_is_rejected_and_a_full_profile_gets_room(store):
    requests = []

    class Cut:
        def start(self):
            return None

        def reply(self, asked):
            requests.extend(request for _, request in asked)
            return [ChatReply(profile_of(2), stop="length") for _ in asked]

    human = {f"fact{n}": "x" * 500 for n in range(60)}
    store.set_core(CoreMemory(human, {}, START))
    run_trajectories([update_session(store, [turn(store)], PromptSet("full"))], Cut())
    rejected = {record.purpose: record.reason for record in store.as_of().rejected}
    assert (
        rejected["core"]
        == rejected["procedural"]
        == ("the reply was cut off, so entries may be missing")
    )
    assert store.as_of().core.human == human
    assert requests[0].max_tokens > 60 * 500 / 2
    run_trajectories([update_session(store, [turn(store)], NANO)], Cut())
    assert requests[3].max_tokens == 128
