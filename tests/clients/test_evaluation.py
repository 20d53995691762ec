from __future__ import annotations

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from intarsia_client.attachment import attached
from intarsia_client.base_model import load_base
from intarsia_client.errors import InputError
from intarsia_client.evaluation import evaluate, evaluate_attached
from intarsia_client.peft_files import write_adapter
from intarsia_client.records import Record

TEXTS = ("the fox", "one two three four", "a red house and a green door above the town", "x")
LABELS = ("animal", "number", "colour", "number")
RECORDS = [Record(text=t, label=label) for t, label in zip(TEXTS, LABELS, strict=True)]


def reference(base, model):
    """Loss and accuracy one record at a time, in float64, by transformers' own loss."""
    total, count, right = 0.0, 0, 0
    with torch.no_grad():
        for record in RECORDS:
            if base.task == "causal-lm":
                inside = base.tokenizer.encode(record.text, add_special_tokens=False)
                tokens = torch.tensor([[4, *inside, 5]])
                total += float(model(input_ids=tokens, labels=tokens).loss) * (len(inside) + 1)
                count += len(inside) + 1
            else:
                tokens = torch.tensor([base.tokenizer.encode(record.text)])
                label = torch.tensor([base.labels.index(record.label)])
                out = model(input_ids=tokens, labels=label)
                total, count = total + float(out.loss), count + 1
                right += int(out.logits.argmax() == label)
    return total / count, count, right / len(RECORDS)


@pytest.mark.parametrize("name", ["llama", "bert", "gpt2", "scorer"])
@pytest.mark.parametrize("adapted", [False, True])
def test_is_what_one_record_at_a_time_gives(bases, make_adapter, name, adapted, tmp_path):
    from peft import PeftModel

    base = bases[name]
    adapter, model = None, base.model
    if adapted:
        adapter = make_adapter(base, 3)
        write_adapter(tmp_path / "adapter", adapter)
        model = PeftModel.from_pretrained(copy.deepcopy(model), tmp_path / "adapter").eval()
    loss, count, accuracy = reference(base, model)
    found = evaluate(base, RECORDS, adapter=adapter, max_length=64, batch_size=2)
    assert found.loss == pytest.approx(loss, rel=1e-5)
    assert found.examples == 4
    if base.task == "causal-lm":
        assert found.perplexity == pytest.approx(math.exp(loss), rel=1e-5)
        assert (found.accuracy, found.tokens) == (None, count)
    else:
        assert (found.perplexity, found.accuracy, found.tokens) == (None, accuracy, 0)


def test_does_not_depend_on_batches_or_order(bases):
    base = bases.llama
    first = evaluate(base, RECORDS, adapter=None, max_length=64, batch_size=1)
    second = evaluate(base, RECORDS[::-1], adapter=None, max_length=64, batch_size=64)
    assert second.loss == pytest.approx(first.loss, rel=1e-6)


def test_a_long_record_counts_every_token(bases):
    base = bases.llama
    record = Record(text=" ".join(TEXTS * 3))
    whole = base.tokenizer.encode(record.text, add_special_tokens=False)
    found = evaluate(base, [record], adapter=None, max_length=16, batch_size=2)
    assert found.tokens == len(whole) + 1
    assert found.examples == 1


def test_several_sets_share_one_attachment(bases, make_adapter):
    base, adapter = bases.llama, make_adapter(bases.llama, 3)
    with attached(base, trainable=None, underneath=adapter) as model:
        parts = [
            evaluate_attached(model, base, [record], max_length=64, batch_size=4)
            for record in RECORDS
        ]
    whole = evaluate(base, RECORDS, adapter=adapter, max_length=64, batch_size=4)
    total = sum(part.loss * part.tokens for part in parts)
    assert total / whole.tokens == pytest.approx(whole.loss, rel=1e-6)


def test_nothing_to_evaluate(bases):
    with pytest.raises(InputError, match="evaluation: 0 records"):
        evaluate(bases.llama, [], adapter=None, max_length=64)


def test_an_adapter_that_overflows(bases, make_adapter):
    adapter = make_adapter(bases.llama, 2)
    broken = {
        name: replace(factors, b=factors.b * np.float32(1e30))
        for name, factors in adapter.modules.items()
    }
    with pytest.raises(InputError, match="evaluation's loss"):
        evaluate(bases.llama, RECORDS, adapter=replace(adapter, modules=broken), max_length=64)


def test_a_trained_model_knows_its_stories(stories):
    base = load_base(str(stories), task="causal-lm")
    story = "Once upon a time, there was a little girl named Lily. She loved to play in the park."
    mixed = " ".join(sorted(story.split(), key=lambda word: word[::-1]))
    known = evaluate(base, [Record(text=story)], adapter=None, max_length=128)
    strange = evaluate(base, [Record(text=mixed)], adapter=None, max_length=128)
    assert known.perplexity < 5 < 3 * known.perplexity < strange.perplexity
