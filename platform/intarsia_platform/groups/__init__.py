"""Data groups: each has records, one adapter trained on them alone, its labels and a descriptor.

A group is the unit of access and of deletion: what a caller may use is a set of groups' adapters,
and what a group forgets, it forgets by being trained again without it (one adapter a group as in
Fleshman et al. 2024, AdapterSwap, arXiv:2404.08417).
"""
