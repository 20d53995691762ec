"""The embedded demonstration: a small base model, and text that every installation already has."""
