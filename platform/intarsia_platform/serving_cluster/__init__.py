"""Several replicas of the gateway with its engine, on one machine's GPUs or on a Ray cluster."""
