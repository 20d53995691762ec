"""What the tests of the grids share."""

import tempfile
import time
import warnings
from contextlib import contextmanager

from flwr.app import ConfigRecord, Message, RecordDict


@contextmanager
def local_ray(cpus):
    """A Ray for all tests of a module, without GPUs whatever machine this is."""
    import ray

    # Ray's sockets need a short path.
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp") as folder:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            ray.init(
                address="local",
                num_cpus=cpus,
                num_gpus=0,
                include_dashboard=False,
                log_to_driver=False,
                object_store_memory=128 * 2**20,
                _temp_dir=folder,
            )
        try:
            yield
        finally:
            ray.shutdown()


def messages(kind, nodes, number="", **config):
    content = RecordDict({"config": ConfigRecord(config)})
    return [Message(content, node, kind, group_id=str(number)) for node in nodes]


def pull_all(grid, ids, seconds=20.0):
    replies, until = [], time.monotonic() + seconds
    while len(replies) < len(ids) and time.monotonic() < until:
        replies += grid.pull_messages(ids)
    return replies
