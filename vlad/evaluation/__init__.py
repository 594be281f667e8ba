"""Evaluation: OCR engines, spelling, obeyed colours, and reports with pictures for people."""
