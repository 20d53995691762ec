"""Answering: a principal and a prompt become an answer of one base and the adapters it may use.

Authorisation comes first and gives a ticket; what is chosen is chosen among that ticket's adapters
alone; the engine checks the ticket again, and the audit log keeps what was done without a word of
prompt or answer.
"""
