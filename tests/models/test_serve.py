"""The server over a local model, asked over real HTTP: the same text as the model gives directly."""

import base64
import json
import random
import threading
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from io import BytesIO

import pytest
from PIL import Image

from personavlm_lib.__main__ import main
from personavlm_lib.models.chat import ChatRequest
from personavlm_lib.models.endpoint import EndpointModel
from personavlm_lib.models.local import LocalModel
from personavlm_lib.models.serve import ChatServer
from personavlm_lib.simulation.scenes import render, sample_scene
from personavlm_lib.study.components import model_source, open_model
from personavlm_lib.study.profiles import BACKBONE


@contextmanager
def serving(model):
    with ChatServer(model, port=0) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def server(model, processor):
    with serving(LocalModel(model=model, processor=processor, name="tiny")) as server:
        yield server


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    for n, color in enumerate(("red", "blue")):
        render(sample_scene(random.Random(n), [("cup", color)])).save(folder / f"{n}.png")
    return [str(folder / f"{n}.png") for n in range(2)]


def post(server, **body):
    """Status and reply of a request to the server."""
    url = f"http://127.0.0.1:{server.server_port}/v1/chat/completions"
    data = json.dumps(
        {"model": "tiny", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 4}
        | body
    )
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data.encode())) as reply:
            return reply.status, json.load(reply)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_the_same_text_and_counts_as_the_kept_model_gives_directly(pictures):
    """Several steps, with images in the first and in later ones, and side by side. (Of bytes that are no text, which an
    untrained model may write, a server can only hand on that they are none.)"""
    steps = [[ChatRequest(f"look at my cup <img> and {n}", (pictures[n % 2],), max_tokens=8),
              ChatRequest("what color is cup ? <img>", (pictures[1],), max_tokens=6), ChatRequest("answer now", max_tokens=5)]
             for n in range(3)]  # fmt: skip
    local = LocalModel(BACKBONE, name="nano")
    with serving(LocalModel(model=local.model, processor=local.processor, name="nano")) as server:
        remote = open_model(server.source)
        assert isinstance(remote, EndpointModel) and remote.name == "nano"
        direct, through = [local.start() for _ in steps], [remote.start() for _ in steps]
        for asks in zip(*steps, strict=True):
            expected = [local.reply([pair])[0] for pair in zip(direct, asks, strict=True)]
            assert remote.reply(list(zip(through, asks, strict=True))) == expected
    assert (
        len({transcript[1]["content"] for transcript in through}) > 1
    )  # the picture and the number tell


def test_requests_that_come_together_share_a_batch(server, monkeypatch):
    sizes, reply = [], server.model.reply
    monkeypatch.setattr(
        server.model, "reply", lambda asked: sizes.append(len(asked)) or reply(asked)
    )
    with ThreadPoolExecutor(8) as pool:
        replies = list(pool.map(lambda n: post(server, temperature=n % 2), range(8)))
    assert {status for status, _ in replies} == {200} and sum(sizes) == 8 and len(sizes) < 8


def test_a_system_message_counts_and_the_end_has_its_reason(server):
    said = [{"role": "system", "content": "my drink is tea"}, {"role": "user", "content": "hello"}]
    _, plain = post(server)
    _, told = post(server, messages=said)
    assert plain["usage"]["prompt_tokens"] != told["usage"]["prompt_tokens"]
    assert (
        plain["choices"][0]["finish_reason"] == "length"
        and plain["usage"]["completion_tokens"] == 4
    )
    ended = post(server, max_tokens=400)[1]
    assert (
        ended["choices"][0]["finish_reason"] == "stop" or ended["usage"]["completion_tokens"] == 400
    )


def image_url(data):
    return [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": data}}]}]


@pytest.mark.parametrize(
    "body, status, reason",
    [
        (dict(stream=True), 400, "stream"), (dict(tools=[{}]), 400, "tools"), (dict(model="other"), 404, "'other'"),
        (dict(max_completion_tokens=-1), 400, "max_completion_tokens"), (dict(temperature="hot"), 400, "temperature"),
        (dict(messages="hello"), 400, "messages"), (dict(messages=[]), 400, "must take turns"),
        (dict(messages=[{"role": "assistant", "content": "a"}]), 400, "must take turns"),
        (dict(messages=[{"role": "user"}]), 400, "'content'"),
        (dict(messages=[{"role": "user", "content": [{"type": "audio"}]}]), 400, "'image_url'"),
        (dict(messages=image_url("https://example.org/a.png")), 400, "data:image/"),
        (dict(messages=image_url("data:image/png;base64,bm9uZQ==")), 400, "messages.0.image.0 cannot be read"),
    ],
)  # fmt: skip
def test_a_bad_request_is_told_why_and_the_server_goes_on(server, body, status, reason):
    code, reply = post(server, **body)
    assert code == status and reason in reply["error"]["message"]
    assert post(server)[0] == 200


def test_a_jpeg_is_seen(server):
    file = BytesIO()
    Image.new("RGB", (300, 200), "red").save(file, "jpeg")
    assert (
        post(
            server,
            messages=image_url(
                f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
            ),
        )[0]
        == 200
    )


def test_models_are_listed_and_nothing_else_is_here(server):
    with urllib.request.urlopen(f"http://127.0.0.1:{server.server_port}/v1/models") as reply:
        assert [entry["id"] for entry in json.load(reply)["data"]] == ["tiny"]
    with pytest.raises(urllib.error.HTTPError, match="404"):
        urllib.request.urlopen(f"http://127.0.0.1:{server.server_port}/")


def test_a_port_in_use_is_said_in_one_line(server, checkpoint, capsys):
    assert main(["serve", "--model", str(checkpoint), "--port", str(server.server_port)]) == 1
    assert f"port {server.server_port} of 127.0.0.1 is in use" in capsys.readouterr().err


def test_a_profile_may_name_a_server_or_a_stage(server, tmp_path, monkeypatch, checkpoint):
    assert model_source("any", server.source) == server.source
    monkeypatch.setenv("PERSONAVLM_RUNS", str(tmp_path))
    with pytest.raises(FileNotFoundError):
        model_source("any", "03_grpo")
    assert isinstance(open_model(checkpoint), LocalModel)
