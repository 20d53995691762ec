"""Audits: what a caller can find out of groups that it may not use, measured from outside."""
