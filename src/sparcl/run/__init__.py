"""One run from start to end: build, train, evaluate, record, resume."""
