"""The trajectory engine (order, batches, transcripts, failures) and the recorder."""

import random
import threading
import time

import pytest

from personavlm_lib.models.chat import ChatReply, ChatRequest
from personavlm_lib.models.engine import Recorder, run_trajectories


class Echo:
    """Replies with the length of the transcript and the last request; records batch sizes."""

    def __init__(self):
        self.batch_sizes = []
        self.transcripts = []

    def start(self):
        transcript = []
        self.transcripts.append(transcript)
        return transcript

    def reply(self, asked):
        self.batch_sizes.append(len(asked))
        replies = []
        for transcript, request in asked:
            transcript.append(request.text)
            replies.append(ChatReply(f"{len(transcript)} {request.text}"))
        return replies


class FailingEcho(Echo):
    """Fails on requests whose text has an exclamation mark."""

    def reply(self, asked):
        replies = super().reply(asked)
        for n, (_, request) in enumerate(asked):
            text = request.text
            if "!" in text:
                replies[n] = ValueError(f"no {text}")
        return replies


def counting(name, requests, new_conversations=()):
    """A trajectory that makes numbered requests and returns the texts of the replies."""
    texts = []
    for n in range(requests):
        reply = yield ChatRequest(f"{name}{n}", new_conversation=n in new_conversations)
        texts.append(reply.text)
    return texts


def raising(name, at):
    """A trajectory that raises KeyError before its request number `at`."""
    for n in range(3):
        if n == at:
            raise KeyError(name)
        yield ChatRequest(f"{name}{n}")
    return name


def test_results_are_in_input_order_whichever_ends_first():
    trajectories = [counting("a", 3), counting("b", 0), counting("c", 1), counting("d", 2)]
    a, b, c, d = run_trajectories(iter(trajectories), Echo())
    assert a == ["1 a0", "2 a1", "3 a2"]
    assert b == []
    assert c == ["1 c0"]
    assert d == ["1 d0", "2 d1"]


def test_no_trajectories_give_no_results():
    assert run_trajectories([], Echo()) == []


def test_free_places_are_refilled_and_width_is_never_exceeded():
    model = Echo()
    trajectories = (counting("x", n) for n in (1, 4, 1, 1, 0, 2))
    run_trajectories(trajectories, model, width=2)
    # Places that become free in one round are filled in the next.
    assert model.batch_sizes == [2, 2, 2, 2, 1]
    assert sum(model.batch_sizes) == 9


def test_trajectories_are_created_only_when_a_place_is_free():
    created = []

    def trajectories():
        for name in "abc":
            created.append(name)
            yield counting(name, 1)

    class Spy(Echo):
        def reply(self, asked):
            created_before_reply.append(created.copy())
            return super().reply(asked)

    created_before_reply = []
    run_trajectories(trajectories(), Spy(), width=1)
    assert created_before_reply == [["a"], ["a", "b"], ["a", "b", "c"]]


def test_new_conversation_opens_a_new_transcript():
    model = Echo()
    trajectory = counting("a", 4, new_conversations=(0, 2))
    (texts,) = run_trajectories([trajectory], model)
    assert texts == ["1 a0", "2 a1", "1 a2", "2 a3"]
    assert model.transcripts == [["a0", "a1"], ["a2", "a3"]]


def test_tuple_of_requests_goes_into_one_batch_of_new_conversations():
    def request_pair():
        first = yield ChatRequest("a")
        b, c = yield ChatRequest("b"), ChatRequest("c")
        last = yield ChatRequest("d", new_conversation=True)
        return [first.text, b.text, c.text, last.text]

    model = Echo()
    paired, counted = run_trajectories([request_pair(), counting("x", 2)], model)
    assert paired == ["1 a", "1 b", "1 c", "1 d"]
    assert counted == ["1 x0", "2 x1"]
    assert model.batch_sizes == [2, 3, 1]


def test_request_checks_its_number_of_images():
    with pytest.raises(ValueError, match="semantic: 1 <img> marks, 0 images"):
        ChatRequest("look <img>", purpose="semantic")
    with pytest.raises(ValueError, match="0 <img> marks, 1 images"):
        ChatRequest("look", ("a.png",))


def test_recorder_keeps_messages_and_images_of_each_conversation_in_order():
    def two_conversations(name):
        text = f"{name} <img> <img>"
        images = (f"{name}1", f"{name}2")
        yield ChatRequest(text, images, purpose="core", new_conversation=True)
        yield ChatRequest("more <img>", (f"{name}3",), purpose="later")
        yield ChatRequest(f"{name} again", purpose="episodic", new_conversation=True)

    samples = []
    trajectories = [two_conversations("a"), two_conversations("b")]
    run_trajectories(trajectories, Recorder(Echo(), samples))
    purposes = [sample["purpose"] for sample in samples]
    images = [sample["images"] for sample in samples]
    assert purposes == ["core", "core", "episodic", "episodic"]
    assert images == [["a1", "a2", "a3"], ["b1", "b2", "b3"], [], []]
    assert samples[1]["messages"] == [
        {"role": "user", "content": "b <img> <img>"},
        {"role": "assistant", "content": "1 b <img> <img>"},
        {"role": "user", "content": "more <img>"},
        {"role": "assistant", "content": "2 more <img>"},
    ]


def test_failing_trajectory_fails_alone_with_its_transcripts():
    failures = []

    def record_failure(error, transcripts):
        failures.append((repr(error), transcripts))
        return "failed"

    def request_pair():
        yield ChatRequest("d"), ChatRequest("e!")

    trajectories = [
        counting("a", 3),
        raising("b", 2),
        counting("c!", 2),
        request_pair(),
        counting("f", 1),
        raising("g", 0),
    ]
    results = run_trajectories(trajectories, FailingEcho(), width=3, on_error=record_failure)
    a, b, c, pair, f, g = results
    assert a == ["1 a0", "2 a1", "3 a2"]
    assert f == ["1 f0"]
    assert [b, c, pair, g] == ["failed"] * 4
    assert sorted(failures) == [
        ("KeyError('b')", [["b0", "b1"]]),
        ("KeyError('g')", []),
        ("ValueError('no c!0')", [["c!0"]]),
        ("ValueError('no e!')", [["d"], ["e!"]]),
    ]


def test_failure_is_raised_without_on_error():
    with pytest.raises(ValueError, match="no a!0"):
        run_trajectories([counting("a!", 1), counting("b", 1)], FailingEcho())
    with pytest.raises(KeyError):
        run_trajectories([raising("b", 1)], FailingEcho())


def test_trajectory_may_handle_a_failed_request_itself():
    def retry():
        try:
            yield ChatRequest("a!")
        except ValueError:
            reply = yield ChatRequest("a", new_conversation=True)
            return reply.text

    assert run_trajectories([retry()], FailingEcho()) == ["1 a"]


class Server:
    """A model whose requests are independent: it echoes each after `seconds(request)`."""

    def __init__(self, connections, seconds=lambda request: 0.0):
        self.connections = connections
        self.seconds = seconds
        self.active = 0
        self.most_active = 0
        self.lock = threading.Lock()

    def start(self):
        return []

    def reply(self, asked):
        [(transcript, request)] = asked
        with self.lock:
            self.active += 1
            self.most_active = max(self.most_active, self.active)
        time.sleep(self.seconds(request))
        with self.lock:
            self.active -= 1
        if "!" in request.text:
            return [ValueError(f"no {request.text}")]
        transcript.append(request.text)
        return [ChatReply(f"{len(transcript)} {request.text}")]


def test_server_gets_each_request_at_once_and_the_results_stay_in_order():
    """500 trajectories of two requests at 200 ms, scaled to a tenth of the time."""
    model = Server(48, lambda request: 0.02)
    start = time.monotonic()
    names = [f"{n}." for n in range(500)]
    results = run_trajectories((counting(name, 2) for name in names), model)
    assert results == [[f"1 {name}0", f"2 {name}1"] for name in names]
    assert model.most_active == 48
    ideal = 1000 * 0.02 / 48
    assert time.monotonic() - start < 2.5 * ideal


def test_slow_replies_hold_up_nothing_but_their_own_trajectory():
    slow = set(random.Random(0).sample(range(200), 10))

    def seconds(request):
        return 0.4 if int(request.text.split(".")[0]) in slow else 0.01

    model = Server(16, seconds)
    start = time.monotonic()
    run_trajectories((counting(f"{n}.", 2) for n in range(200)), model)
    ideal = (190 * 2 * 0.01 + 10 * 2 * 0.4) / 16
    assert time.monotonic() - start < 2 * max(ideal, 2 * 0.4)


def test_server_answers_tuples_and_new_conversations_as_rounds_do():
    def mixed(name):
        first = yield ChatRequest(f"{name}a")
        b, c = yield ChatRequest(f"{name}b"), ChatRequest(f"{name}c")
        last = yield ChatRequest(f"{name}d", new_conversation=True)
        return [first.text, b.text, c.text, last.text]

    random_seconds = random.Random(0)
    model = Server(4, lambda request: random_seconds.random() / 100)
    in_rounds = run_trajectories([mixed(str(n)) for n in range(9)], Echo())
    assert run_trajectories([mixed(str(n)) for n in range(9)], model) == in_rounds


def test_failures_end_only_their_trajectory_on_a_server_too():
    ended = []
    trajectories = [counting("a", 2), counting("b!", 2), raising("c", 1), counting("d", 1)]
    results = run_trajectories(
        trajectories,
        Server(2),
        on_error=lambda error, _: str(error),
        on_result=lambda index, result: ended.append((index, result)),
    )
    assert results == [["1 a0", "2 a1"], "no b!0", "'c'", ["1 d0"]]
    assert sorted(ended) == [(0, ["1 a0", "2 a1"]), (3, ["1 d0"])]
    with pytest.raises(ValueError, match="no b!0"):
        run_trajectories([counting("b!", 1), counting("a", 9)], Server(2))


def test_interruption_ends_a_run_without_waiting_for_the_server():
    def interrupt():
        yield ChatRequest("a")
        raise KeyboardInterrupt

    model = Server(2, lambda request: 1.0 if request.text.startswith("slow") else 0.0)
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run_trajectories([counting("slow", 2), interrupt()], model)
    assert time.monotonic() - start < 0.8
