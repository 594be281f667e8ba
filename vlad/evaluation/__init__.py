"""Evaluation: OCR engines, spelling, obeyed colours, retrieval, and reports with pictures for people."""
