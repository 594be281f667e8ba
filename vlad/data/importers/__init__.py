"""Importers: pictures and annotations of other people's formats -> samples."""
