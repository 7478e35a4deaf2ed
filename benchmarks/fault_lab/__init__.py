"""Parts of benchmarks/faults.py: real processes, what is done to them, and a hub that fails."""
