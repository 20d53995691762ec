"""How adapters travel: the broadcast file, the update's encodings, and what encoding cost.

Nothing here needs torch. Everything that is decoded may come from anyone.
"""

from intarsia_client.transport.broadcast import (
    broadcast_prefix_size,
    decode_broadcast,
    encode_broadcast,
)
from intarsia_client.transport.feedback import CarriedError, encode_with_feedback
from intarsia_client.transport.updates import decode_update, encode_update, holds_differences

__all__ = [
    "CarriedError",
    "broadcast_prefix_size",
    "decode_broadcast",
    "decode_update",
    "encode_broadcast",
    "encode_update",
    "encode_with_feedback",
    "holds_differences",
]
