"""What each client can afford to train: its rank and its modules, from its resources."""
