"""Intarsia's edge SDK: what a site needs to train on its own records and send only an update."""
