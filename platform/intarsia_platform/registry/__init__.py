"""Adapters, their lineage and the database and store that hold them."""
