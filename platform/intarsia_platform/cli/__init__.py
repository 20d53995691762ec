"""The command line: thin rooms that read what a person typed and show what came of it."""
