"""What happens on a bad day, on purpose: one module for each kind of fault, started by `benchmarks/faults.py`."""
