"""Sound for a running picture: capture, step and playback against one clock."""
