"""Profiling: throughput, memory and sampling time, Stable Diffusion stand-ins, and the doctor's checks."""
