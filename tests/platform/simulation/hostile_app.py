"""The real ClientApp with one site that misbehaves; which way, its environment says."""

from __future__ import annotations

import json
import os
from dataclasses import replace

import numpy as np
from flwr.app import ConfigRecord, Context, Message
from flwr.clientapp import ClientApp
from intarsia_client import app as honest
from intarsia_client.files import bytes_digest
from intarsia_client.messages import ADAPTER, MANIFEST, adapter_of, adapter_record
from intarsia_client.peft_files import decode_adapter, encode_adapter

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    reply = honest.train(message, context)
    if context.node_config["client"] != "site-1":
        return reply
    attack = os.environ["HOSTILE"]
    if attack == "crash":
        raise RuntimeError("the site's disk is gone")
    manifest = json.loads(str(reply.content.config_records[MANIFEST]["json"]))
    encoded = adapter_of(reply.content.array_records[ADAPTER])
    adapter = decode_adapter(encoded.configuration, encoded.tensors)
    name = min(adapter.modules)
    factors = adapter.modules[name]
    if attack in ("huge", "reversed"):
        # Everywhere what B says, a thousand times or the other way round.
        times = np.float32(1000.0 if attack == "huge" else -50.0)
        modules = {key: replace(one, b=times * one.b) for key, one in adapter.modules.items()}
        adapter, factors = replace(adapter, modules=modules), modules[name]
    elif attack == "nan":
        b = factors.b.copy()
        b[0, 0] = np.nan
        factors = replace(factors, b=b)
    elif attack == "shape":
        factors = replace(factors, a=factors.a[:, :-1])
    elif attack == "stale":
        manifest["round"] -= 1
    elif attack == "base":
        manifest["base_digest"] = "sha256:" + "0" * 64
    encoded = encode_adapter(replace(adapter, modules={**adapter.modules, name: factors}))
    manifest["tensors_digest"] = bytes_digest(encoded.tensors)
    reply.content.config_records[MANIFEST] = ConfigRecord({"json": json.dumps(manifest)})
    reply.content.array_records[ADAPTER] = adapter_record(encoded)
    return reply
