"""Dubbing as people do it: the original sound, takes, redo, objects, many files."""
