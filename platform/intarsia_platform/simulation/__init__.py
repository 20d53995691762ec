"""A whole federation on machines of one's own, from one configuration file.

The path: configuration -> records, shards, base and plan (``preparation``) -> grid and durable
rounds (``run``) -> measurements (``measurement``) -> rounds as results (``round_results``), report
and MLflow. Begin at :func:`intarsia_platform.simulation.run.simulate`.
"""
