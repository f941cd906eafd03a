"""The honest stereo report of any audio or video file: what `spatial-v2a inspect` measures."""
