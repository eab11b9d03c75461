"""The driver: order, places, transcripts; and the recorder."""

import pytest

from personavlm_lib.models.chat import ChatReply, ChatRequest
from personavlm_lib.models.engine import Recorder, run_trajectories


class Echo:
    """Says how many asks its transcript has had and what the last one was; keeps the size of every round."""

    def __init__(self):
        self.rounds, self.transcripts = [], []

    def start(self):
        self.transcripts.append([])
        return self.transcripts[-1]

    def reply(self, asked):
        self.rounds.append(len(asked))
        for transcript, ask in asked:
            transcript.append(ask.text)
        return [ChatReply(f"{len(transcript)} {ask.text}") for transcript, ask in asked]


def counting(name, asks, fresh=()):
    said = []
    for n in range(asks):
        reply = yield ChatRequest(f"{name}{n}", new_conversation=n in fresh)
        said.append(reply.text)
    return said


def test_results_come_in_the_order_given_whatever_ends_first():
    lengths = [3, 0, 1, 2]
    results = run_trajectories((counting("abcd"[i], n) for i, n in enumerate(lengths)), Echo())
    assert results == [["1 a0", "2 a1", "3 a2"], [], ["1 c0"], ["1 d0", "2 d1"]]
    assert run_trajectories([], Echo()) == []


def test_places_are_refilled_and_never_exceeded():
    model = Echo()
    run_trajectories((counting("x", n) for n in (1, 4, 1, 1, 0, 2)), model, width=2)
    assert model.rounds == [2, 2, 2, 2, 1]  # places freed in one round are taken in the next
    assert sum(model.rounds) == 9


def test_trajectories_are_begun_only_when_there_is_a_place():
    begun = []

    def trajectories():
        for name in "abc":
            begun.append(name)
            yield counting(name, 1)

    model = Echo()
    reply, seen = model.reply, []
    model.reply = lambda asked: seen.append(list(begun)) or reply(asked)
    run_trajectories(trajectories(), model, width=1)
    assert seen == [["a"], ["a", "b"], ["a", "b", "c"]]


def test_a_fresh_ask_opens_a_new_transcript():
    model = Echo()
    assert run_trajectories([counting("a", 4, fresh=(0, 2))], model) == [
        ["1 a0", "2 a1", "1 a2", "2 a3"]
    ]
    assert model.transcripts == [["a0", "a1"], ["a2", "a3"]]


def test_asks_of_conversations_of_their_own_are_put_together():
    def asks_both():
        first = yield ChatRequest("a")
        both = yield ChatRequest("b"), ChatRequest("c")
        last = yield ChatRequest("d", new_conversation=True)
        return [first.text, [reply.text for reply in both], last.text]

    model = Echo()
    assert run_trajectories([asks_both(), counting("x", 2)], model) == [
        ["1 a", ["1 b", "1 c"], "1 d"],
        ["1 x0", "2 x1"],
    ]
    assert model.rounds == [2, 3, 1]


def test_an_ask_counts_its_images():
    with pytest.raises(ValueError, match="semantic: 1 <img> marks, 0 images"):
        ChatRequest("look <img>", purpose="semantic")
    with pytest.raises(ValueError, match="0 <img> marks, 1 images"):
        ChatRequest("look", ("a.png",))


def test_the_recorder_keeps_messages_and_images_in_order_one_sample_a_conversation():
    def two_talks(name):
        yield ChatRequest(
            f"{name} <img> <img>", (f"{name}1", f"{name}2"), purpose="core", new_conversation=True
        )
        yield ChatRequest("more <img>", (f"{name}3",), purpose="later")
        yield ChatRequest(f"{name} again", purpose="episodic", new_conversation=True)

    samples = []
    run_trajectories([two_talks("a"), two_talks("b")], Recorder(Echo(), samples))
    assert [(s["purpose"], s["images"]) for s in samples] == [
        ("core", ["a1", "a2", "a3"]), ("core", ["b1", "b2", "b3"]), ("episodic", []), ("episodic", []),
    ]  # fmt: skip
    assert samples[1]["messages"] == [
        {"role": "user", "content": "b <img> <img>"}, {"role": "assistant", "content": "1 b <img> <img>"},
        {"role": "user", "content": "more <img>"}, {"role": "assistant", "content": "2 more <img>"},
    ]  # fmt: skip


class Choosy(Echo):
    """Refuses what it is told to."""

    def reply(self, asked):
        replies = super().reply(asked)
        return [
            ValueError(f"no {ask.text}") if "!" in ask.text else r
            for (_, ask), r in zip(asked, replies, strict=True)
        ]


def breaking(name, at):
    for n in range(3):
        if n == at:
            raise KeyError(name)
        yield ChatRequest(f"{name}{n}")
    return name


def test_one_failing_trajectory_fails_alone_with_its_transcript():
    failures = []

    def note(error, transcripts):
        failures.append((repr(error), transcripts))
        return "failed"

    def both():
        yield ChatRequest("d"), ChatRequest("e!")

    trajectories = [
        counting("a", 3),
        breaking("b", 2),
        counting("c!", 2),
        both(),
        counting("f", 1),
        breaking("g", 0),
    ]
    results = run_trajectories(trajectories, Choosy(), width=3, on_error=note)
    assert results == [["1 a0", "2 a1", "3 a2"], "failed", "failed", "failed", ["1 f0"], "failed"]
    assert sorted(failures) == [
        ("KeyError('b')", [["b0", "b1"]]), ("KeyError('g')", []), ("ValueError('no c!0')", [["c!0"]]),
        ("ValueError('no e!')", [["d"], ["e!"]]),
    ]  # fmt: skip


def test_a_failure_is_raised_unless_somebody_takes_it():
    with pytest.raises(ValueError, match="no a!0"):
        run_trajectories([counting("a!", 1), counting("b", 1)], Choosy())
    with pytest.raises(KeyError):
        run_trajectories([breaking("b", 1)], Choosy())


def test_a_trajectory_may_mend_a_failed_ask_itself():
    def mending():
        try:
            yield ChatRequest("a!")
        except ValueError:
            return (yield ChatRequest("a", new_conversation=True)).text

    assert run_trajectories([mending()], Choosy()) == ["1 a"]
