"""Profiling: throughput, memory, sampling speed, and the doctor's checks before a long run."""
