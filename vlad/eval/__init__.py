"""Evaluation: OCR metrics, published protocols, fidelity, benchmarks, ablation, human study."""
