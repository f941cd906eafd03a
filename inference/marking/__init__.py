"""Marks on synthetic sound: an inaudible watermark, and a signed manifest of the file."""
