"""Stereo mathematics: panning, level differences, spectra."""
