"""What servers may do, and what becomes of it: a table, and fuzzed bodies.

Each row is one response of a scripted server over real HTTP. The outcome is the text and the stop
reason of a reply, or the kind of a failure, which is never scored.
"""

import gzip
import json
import random
import time

import pytest

from personavlm_lib.models.chat import ChatReply, ChatRequest, ContextOverflow, RequestFailure
from personavlm_lib.models.completions import read_completion
from personavlm_lib.models.endpoint import API_KEY_VARIABLE, EndpointModel

NO_HEADERS: dict[str, str] = {}


def body(content="tea", finish="stop", **message):
    """The body of a chat completion."""
    choice = {"index": 0, "finish_reason": finish}
    choice["message"] = {"role": "assistant", "content": content, **message}
    usage = {"prompt_tokens": 7, "completion_tokens": 3}
    return {"choices": [choice], "usage": usage}


def ok(*args, **message):
    return 200, NO_HEADERS, json.dumps(body(*args, **message)).encode()


def error(status, message, **headers):
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return status, named, json.dumps({"error": {"message": message}}).encode()


def carried(**fields):
    """A response with status 200 whose body has these fields."""
    return 200, NO_HEADERS, json.dumps(fields).encode()


def raw(data, **headers):
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return 200, named, data


def drip(handler):
    """A valid response, so slowly that no single wait is too long."""
    data = json.dumps(body()).encode()
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(data)))
    handler.end_headers()
    for byte in data:
        handler.wfile.write(bytes([byte]))
        time.sleep(0.05)


def chunked(handler):
    data = json.dumps(body("in chunks")).encode()
    handler.protocol_version = "HTTP/1.1"
    handler.send_response(200)
    handler.send_header("Transfer-Encoding", "chunked")
    handler.send_header("Connection", "close")
    handler.end_headers()
    for part in (data[:9], data[9:]):
        handler.wfile.write(b"%x\r\n%s\r\n" % (len(part), part))
    handler.wfile.write(b"0\r\n\r\n")


VLLM_OVERFLOW = (
    "This model's maximum context length is 4096 tokens. However, you requested 5000 tokens"
)
LLAMA_CPP_OVERFLOW = "the request exceeds the available context size, try increasing it"
THINKING_PARTS = [
    {"type": "thinking", "thinking": [{"type": "text", "text": "so"}]},
    {"type": "text", "text": "tea"},
]
TOOL_CALL = [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]

# name -> (response, outcome): a text and a stop reason, or the kind of a failure
BEHAVIORS = {
    "plain": (ok(), ("tea", "stop")),
    "cut": (ok("te", "length"), ("te", "length")),
    "cut, other word": (ok("te", "max_tokens"), ("te", "length")),
    "window full": (ok("te", "model_context_window_exceeded"), ("te", "overflow")),
    "filter": (ok(None, "content_filter"), ("", "filter")),
    "refusal": (ok(None, "stop", refusal="I cannot."), ("I cannot.", "refusal")),
    "tool call": (ok(None, "tool_calls", tool_calls=TOOL_CALL), ("", "tool call")),
    "unknown finish reason": (ok("tea", "repetition"), ("tea", "repetition")),
    "no finish reason": (ok("tea", None), ("tea", "stop")),
    "empty text": (ok(""), ("", "stop")),
    "null text": (ok(None), ("", "stop")),
    "null text, no reason": (ok(None, None), "invalid response"),
    "reasoning_content": (ok(reasoning_content="so"), ("<think>so</think>\ntea", "stop")),
    "reasoning": (ok(reasoning=" so "), ("<think>so</think>\ntea", "stop")),
    "reasoning in the text": (
        ok("<think>so</think>tea", reasoning="so"),
        ("<think>so</think>tea", "stop"),
    ),
    "cut while thinking": (ok(None, "length", reasoning="so"), ("<think>so", "length")),
    "thinking parts": (ok(THINKING_PARTS), ("<think>so</think>\ntea", "stop")),
    "text parts": (
        ok([{"type": "text", "text": "t"}, {"type": "text", "text": "ea"}]),
        ("tea", "stop"),
    ),
    "half a surrogate pair": (ok("tea \ud83d"), ("tea ?", "stop")),
    "byte order mark": (raw(b"\xef\xbb\xbf" + json.dumps(body()).encode()), ("tea", "stop")),
    "UTF-16": (raw(json.dumps(body("thé"), ensure_ascii=False).encode("utf-16")), ("thé", "stop")),
    "gzip": (
        raw(gzip.compress(json.dumps(body()).encode()), Content_Encoding="gzip"),
        ("tea", "stop"),
    ),
    "chunked": (chunked, ("in chunks", "stop")),
    "wrong content type": (
        raw(json.dumps(body()).encode(), Content_Type="text/html"),
        ("tea", "stop"),
    ),
    "error with status 200": (
        carried(error={"message": "overloaded", "code": 502}),
        "server error",
    ),
    "error text with status 200": (carried(error="overloaded"), "server error"),
    "error in the choice": (
        carried(choices=[{"error": {"message": "lost"}, "message": {"content": "te"}}]),
        "server error",
    ),
    "finish reason error": (ok("te", "error"), "server error"),
    "finish reason abort": (ok("te", "abort"), "server error"),
    "overflow with status 200": (carried(error={"message": VLLM_OVERFLOW}), "overflow"),
    "overflow, vLLM": (error(400, VLLM_OVERFLOW), "overflow"),
    "overflow, llama.cpp": (error(500, LLAMA_CPP_OVERFLOW), "overflow"),
    "overflow, 413": (error(413, "prompt is too long: 9 tokens > 5 maximum"), "overflow"),
    "bad request": (error(400, "unknown field 'seed'"), "request refused"),
    "unprocessable": (error(422, "temperature must be positive"), "request refused"),
    "payment required": (error(402, "no credit"), "request refused"),
    "key": (error(401, "bad key"), "key refused"),
    "no permission": (error(403, "not for you"), "key refused"),
    "unknown model": (error(404, "no such model"), "unknown model"),
    "conflict": (error(409, "busy"), "request refused"),
    "rate limit": (error(429, "slow down", Retry_After="0.01"), "too many requests"),
    "rate limit for hours": (error(429, "slow down", Retry_After="9999"), "too many requests"),
    "server error": (error(500, "oops"), "server error"),
    "gateway page": ((502, NO_HEADERS, b"<html>Bad gateway</html>"), "server error"),
    "unavailable, no body": ((503, NO_HEADERS, b""), "server error"),
    "redirect to nowhere": ((307, {"Location": "http://127.0.0.1:9/"}, b""), "unreachable"),
    "page": (raw(b"<html>hello</html>"), "invalid response"),
    "nothing": (raw(b""), "invalid response"),
    "a list": (raw(b"[]"), "invalid response"),
    "no choices": (carried(choices=[]), "invalid response"),
    "choices of null": (carried(choices=[None]), "invalid response"),
    "deep nesting": (raw(b"[" * 100_000), "invalid response"),
    "damaged gzip": (raw(b"\x1f\x8b garbage", Content_Encoding="gzip"), "unreachable"),
    "body breaks off": (None, "unreachable"),
    "no response": (2.5, "timeout"),
    "endless trickle": (drip, "timeout"),
}


def outcome(reply):
    if isinstance(reply, ChatReply):
        return reply.text, reply.stop
    assert isinstance(reply, RequestFailure)
    return reply.kind


@pytest.mark.parametrize("name", BEHAVIORS)
def test_each_behavior_has_its_outcome_and_spares_the_neighbors(served, name):
    response, expected = BEHAVIORS[name]

    def script(sent):
        return response if sent["messages"][-1]["content"] == "ask" else "fine"

    with served(script) as (source, _):
        model = EndpointModel(source, retries=0, time_limit=1.0)
        transcripts = [model.start() for _ in range(3)]
        requests = [ChatRequest("before"), ChatRequest("ask"), ChatRequest("after")]
        before, reply, after = model.reply(list(zip(transcripts, requests, strict=True)))
        assert (before.text, after.text) == ("fine", "fine")
        assert outcome(reply) == expected
        kept = [message["content"] for message in transcripts[1]]
        assert kept == (["ask", reply.text] if isinstance(reply, ChatReply) else [])
        if isinstance(reply, RequestFailure):
            url, _ = source.split("#")
            assert str(reply).startswith(f"server {url} ")
            assert len(str(reply)) < 700


def test_the_table_covers_many_behaviors():
    assert len(BEHAVIORS) >= 50


def test_overflow_says_which_share_fits():
    with pytest.raises(ContextOverflow) as overflow:
        read_completion(json.dumps({"error": {"message": VLLM_OVERFLOW}}).encode())
    assert overflow.value.fits == 4096 / 5000


def fuzzed_bodies(count):
    """Random damage to valid bodies: of their bytes, and of the values in them."""
    rng = random.Random(0)
    strange = [None, True, -1, 2**70, 1e300, "", "x", [], {}, [None], {"a": {}}, "\ud800", [[]]]

    def damage(value, depth=0):
        if rng.random() < 0.15:
            return rng.choice(strange)
        if isinstance(value, dict):
            kept = {key: damage(item, depth + 1) for key, item in value.items()}
            return {key: item for key, item in kept.items() if rng.random() > 0.05}
        if isinstance(value, list):
            return [damage(item, depth + 1) for item in value] * rng.choice([1, 1, 1, 0, 2])
        return value

    full = body(THINKING_PARTS, reasoning="so", refusal=None, tool_calls=TOOL_CALL)
    full["error"] = None
    for n in range(count):
        data = json.dumps(damage(full)).encode()
        if n % 2:
            start = rng.randrange(len(data) + 1)
            noise = rng.randbytes(rng.randrange(4))
            data = data[:start] + noise + data[start + rng.randrange(9) :]
        yield data


def test_no_body_raises_anything_but_a_failure():
    outcomes = {"reply": 0, "failure": 0}
    for data in fuzzed_bodies(10_000):
        try:
            reply = read_completion(data)
        except RequestFailure:
            outcomes["failure"] += 1
        else:
            outcomes["reply"] += 1
            assert isinstance(reply.text, str) and isinstance(reply.stop, str)
            assert f"{reply.text}{reply.stop}".encode()
            assert 0 <= reply.tokens_in <= 2**53 and 0 <= reply.tokens_out <= 2**53
    assert min(outcomes.values()) > 1000


def sent_by(served, **settings):
    """The request and headers that a model with these settings sends."""
    heard = {}

    def respond(handler):
        heard.update({name.lower(): value for name, value in handler.headers.items()})
        handler.send(200, json.dumps(body()).encode())

    with served(lambda _: respond) as (source, bodies):
        model = EndpointModel(source, **settings)
        [reply] = model.reply([(model.start(), ChatRequest("hi", max_tokens=5))])
    assert reply.text == "tea"
    [sent] = bodies
    return sent, heard


def test_settings_decide_what_is_sent(served, monkeypatch):
    monkeypatch.setenv(API_KEY_VARIABLE, " sk-key\n")
    monkeypatch.setenv("OPENAI_ORG_ID", "org-secret")
    monkeypatch.setenv("OPENAI_PROJECT_ID", "project-secret")
    sent, headers = sent_by(
        served,
        temperature=None,
        top_p=0.8,
        seed=4,
        max_tokens_name="max_completion_tokens",
        extra_body={"chat_template_kwargs": {"enable_thinking": False}},
        headers={"X-Title": "study"},
    )
    assert sent.pop("messages") == [{"role": "user", "content": "hi"}]
    assert sent == {
        "model": "teller",
        "max_completion_tokens": 5,
        "top_p": 0.8,
        "seed": 4,
        "chat_template_kwargs": {"enable_thinking": False},
    }
    assert headers["authorization"] == "Bearer sk-key"
    assert headers["x-title"] == "study"
    assert not any("secret" in value for value in headers.values())


@pytest.mark.parametrize(
    "settings",
    [dict(max_tokens_name="limit"), dict(connections=0), dict(time_limit=0), dict(retries=-1)],
)
def test_settings_that_no_server_can_take_are_rejected(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        EndpointModel("http://host/v1#m", **settings)


def test_key_that_no_header_can_hold_is_rejected_without_showing_it(monkeypatch):
    monkeypatch.setenv(API_KEY_VARIABLE, "sk-one sk-two")
    with pytest.raises(ValueError, match=API_KEY_VARIABLE) as error:
        EndpointModel("http://host/v1#m")
    assert "sk-one" not in str(error.value)


def test_proxy_of_the_environment_is_named_without_its_password(monkeypatch):
    monkeypatch.setenv("http_proxy", "http://me:secret@127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "")
    model = EndpointModel("http://model.invalid/v1#m", retries=0)
    [failure] = model.reply([(model.start(), ChatRequest("hi"))])
    assert "through the proxy 127.0.0.1:9 of the environment" in str(failure)
    assert "secret" not in str(failure)


def test_requests_keep_to_the_rate_limit(served):
    with served(lambda _: "well") as (source, bodies):
        model = EndpointModel(source, requests_per_minute=600)
        start = time.monotonic()
        model.reply([(model.start(), ChatRequest(str(n))) for n in range(5)])
        assert time.monotonic() - start >= 0.4
    assert len(bodies) == 5


def test_server_that_asks_to_wait_for_hours_is_not_asked_again(served):
    response = BEHAVIORS["rate limit for hours"][0]
    with served(lambda _: response) as (source, bodies):
        model = EndpointModel(source, retries=3)
        model.reply([(model.start(), ChatRequest("hi"))])
    assert len(bodies) == 1
