"""The HTTP API: one module per resource; what they share is in `guarded_route`, `problems`, `surroundings` and `writes`."""
