"""The gateway: HTTP in the words of OpenAI's interface, over answering.

Who asks is settled first (:mod:`~intarsia_platform.gateway.callers`), then what they may use, and
only then is anything of a request looked at. Names of adapters never stand for rights here.
"""
