"""Low-rank algebra and federated aggregation methods, one paper a file."""
