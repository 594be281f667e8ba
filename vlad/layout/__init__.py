"""Layouts: polygons, layout files, fonts, glyph maps, and the refit that reads a layout off a glyph map."""
