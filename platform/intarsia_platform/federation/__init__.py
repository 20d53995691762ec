"""The round loop and where clients run: strategy, admission, grids and the rounds that survive."""
