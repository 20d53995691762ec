"""Clients that describe a group together, over the grid that federations run over."""

from __future__ import annotations

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from intarsia_client.base_model import load_base
from intarsia_client.errors import FederationError, InputError
from intarsia_client.records import Record
from intarsia_client.shards import write_shards
from intarsia_continual.descriptors.base import HELD_OUT
from intarsia_continual.descriptors.catalog import find_method
from intarsia_continual.encoders import BaseModelEncoder
from intarsia_platform.federation.client_contexts import VirtualClient
from intarsia_platform.federation.in_process_grid import InProcessGrid
from intarsia_platform.groups.joint_description import SITE_APP, JointDescriber
from intarsia_platform.groups.site_app import PART, VECTORS, Question


@pytest.fixture(scope="module")
def base(llama):
    return load_base(llama, task="causal-lm")


@pytest.fixture(scope="module")
def encoder(base):
    return BaseModelEncoder(base)


def question(base, method):
    return Question(
        method=method, encoder="base", base=base.base, task=base.task, labels=(), seed=0, most=0
    )


class Overheard(InProcessGrid):
    """A grid that keeps what clients answer."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.answers = []

    def send_and_receive(self, messages, *, timeout=None):
        found = list(super().send_and_receive(messages, timeout=timeout))
        self.answers += found
        return found


def asked(tmp_path, texts, app=SITE_APP):
    shards = {name: [Record(text=text) for text in some] for name, some in texts.items()}
    places = write_shards(tmp_path / "train.jsonl", shards)
    clients = [
        VirtualClient(
            node_id=node,
            node_config={"client": name, **places[name].as_node_config("train")},
        )
        for node, name in enumerate(texts, start=1)
    ]
    return Overheard(app, clients=clients), dict(enumerate(texts, start=1))


def described(tmp_path, base, encoder, texts, method, app=SITE_APP):
    grid, names = asked(tmp_path, texts, app)
    with grid:
        describer = JointDescriber(grid, names, encoder, deadline_seconds=60)
        return describer.describe(question(base, method)), grid.answers


QUERIES = ("the dog", "a blue sky", "seven eight nine", "records of the site")


@pytest.mark.parametrize("method", ["centroid", "gaussian"])
def test_the_join_is_what_the_method_makes_of_all_texts(
    tmp_path, base, encoder, site_texts, method
):
    texts = site_texts()
    joint, answers = described(tmp_path, base, encoder, texts, method)
    assert joint.clients == tuple(sorted(texts))
    found, used = joint.descriptor, find_method(method).method
    rows = encoder.encode([text for some in texts.values() for text in some])
    whole = used.summarise(rows, np.random.default_rng(0))
    queries = encoder.encode(QUERIES).astype(np.float64)
    np.testing.assert_allclose(
        used.compare(found.arrays, queries), used.compare(whole, queries), rtol=1e-3, atol=1e-4
    )
    # Every text was left out once, and scores as texts like the others do.
    scores = found.arrays[HELD_OUT]
    own = used.compare(whole, rows.astype(np.float64))
    assert scores.shape == (101,) and np.all(np.diff(scores) >= 0)
    assert own.min() - 1 < scores[0] <= scores[-1] < own.max() + 0.1
    # No vector of a single text has left a site.
    left = [array.numpy() for one in answers for array in one.content[VECTORS].values()]
    assert len(left) == (8 if method == "centroid" else 12)
    for array in left:
        for line in np.atleast_2d(array):
            assert len(line) != encoder.width or not np.isclose(line, rows, atol=1e-4).all(1).any()


def test_which_site_has_a_text_changes_the_fit_by_rounding_alone(
    tmp_path, base, encoder, site_texts
):
    texts = site_texts()
    pooled = {"one": [text for some in texts.values() for text in some]}
    (apart, _), (together, _) = (
        described(tmp_path, base, encoder, some, "centroid") for some in (texts, pooled)
    )
    np.testing.assert_allclose(
        apart.descriptor.arrays["centroid"], together.descriptor.arrays["centroid"], atol=1e-6
    )


def test_vectors_of_texts_leave_where_they_were_asked_for(tmp_path, base, encoder, site_texts):
    texts = site_texts()
    joint, _ = described(tmp_path, base, encoder, texts, "document-similarity")
    rows = encoder.encode([text for name in sorted(texts) for text in texts[name]])
    np.testing.assert_allclose(joint.descriptor.arrays["documents"], rows, atol=1e-5)


def test_equal_clients_give_equal_bytes(tmp_path, base, encoder, site_texts):
    first, second = (
        described(tmp_path, base, encoder, site_texts(), "gaussian")[0] for _ in range(2)
    )
    assert first.descriptor.to_bytes() == second.descriptor.to_bytes()


def test_a_site_of_few_texts_says_nothing(tmp_path, base, encoder, site_texts):
    texts = site_texts()
    few = {**texts, "west": texts["west"][:4], "east": [texts["east"][0]] * 9}
    joint, answers = described(tmp_path, base, encoder, few, "centroid")
    assert joint.clients == ("north", "south")
    assert sum(one.has_error() for one in answers) == 2
    with pytest.raises(FederationError, match="at least 5 are needed") as caught:
        described(tmp_path, base, encoder, {"west": texts["west"][:4]}, "centroid")
    assert "\n" not in str(caught.value)


def liar(encoder, **arrays):
    """A client app whose sites answer what they like."""
    app = ClientApp()

    @app.query("moments")
    def moments(message: Message, context: Context) -> Message:
        part = ConfigRecord({"encoder": encoder, "texts": 6})
        vectors = ArrayRecord({name: Array(array) for name, array in arrays.items()})
        return Message(RecordDict({PART: part, VECTORS: vectors}), reply_to=message)

    return app


@pytest.mark.parametrize(
    ("arrays", "part"),
    [
        ({"total": np.full(32, np.inf)}, "impossible sum"),
        ({"total": np.full(32, 7.0)}, "impossible sum"),
        ({"total": np.zeros(31)}, "impossible sum"),
        ({"total": np.zeros(32), "second": np.eye(32)}, "impossible second moments"),
        ({"total": np.zeros(32, dtype=np.int64)}, "floating numbers"),
        ({"other": np.zeros(32)}, "none"),
    ],
)
def test_what_no_texts_can_have_said_is_not_joined(
    tmp_path, base, encoder, site_texts, arrays, part
):
    app = liar(encoder.digest, **arrays)
    with pytest.raises(FederationError, match=part):
        described(tmp_path, base, encoder, site_texts(), "centroid", app=app)


def test_another_encoder_is_refused(tmp_path, base, encoder, site_texts):
    app = liar("sha256:" + "0" * 64, total=np.zeros(32))
    with pytest.raises(FederationError, match="encoder"):
        described(tmp_path, base, encoder, site_texts(), "centroid", app=app)


def test_sites_do_not_give_vectors_for_methods_that_need_none(tmp_path, base, site_texts):
    grid, _ = asked(tmp_path, site_texts())
    for what, method in (("documents", "centroid"), ("left_out", "centroid"), ("moments", "x")):
        content = RecordDict({"question": question(base, method).as_record()})
        message = Message(content, dst_node_id=1, message_type=f"query.{what}", group_id="0")
        if what == "moments":
            message.content["question"] = ConfigRecord({"method": method})
        (reply,) = grid.send_and_receive([message])
        assert reply.has_error() and reply.error.reason


def test_a_method_that_there_is_not_is_refused(tmp_path, base, encoder, site_texts):
    with pytest.raises(InputError, match="moon"):
        described(tmp_path, base, encoder, site_texts(), "moon")
