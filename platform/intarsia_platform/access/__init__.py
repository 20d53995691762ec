"""Access: who may use which adapter, decided before anything is chosen.

Policies (Cedar) and what the registry knows of the adapters become an immutable, authenticated
ticket; the engine takes tickets, never names. API keys and bearer tokens say who asks, the epoch
says that a right may have gone, the audit log keeps what was decided. Nothing here loads torch.
"""
