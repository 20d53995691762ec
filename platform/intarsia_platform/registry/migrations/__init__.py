"""The history of the schema, run by ``open_database``; see tables.py for where it leads."""
