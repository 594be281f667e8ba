"""Importers: images and annotations of other people's formats -> samples."""
